//! `show` says what is in a bundle. It reads the current commit only, so it is quick for a bundle of any size.

use super::{count, short};
use crate::cli::StageArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::part;
use crate::table::{Table, number};
use crate::view::{Damage, View};
use conpet_formats::bundle::manifest::{BaseRef, HeadEntry, Manifest, ModuleEntry, SelectorEntry, TaskEntry};
use conpet_formats::feature::FeatureSpec;
use serde::Serialize;
use std::collections::BTreeMap;

#[derive(Serialize)]
struct Show<'a> {
    schema: &'static str,
    file: String,
    stage: u64,
    digest: String,
    damage: Vec<Damage>,
    base: &'a BaseRef,
    method: &'a str,
    trunk: u32,
    tasks: usize,
    labels: usize,
    selector: &'a SelectorEntry,
    modules: &'a [ModuleEntry],
    heads: &'a [HeadEntry],
    target_sets: &'a BTreeMap<String, Vec<String>>,
    sections: Vec<Section>,
    requires: &'a [String],
    ext: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Section {
    index: usize,
    name: String,
    kind: &'static str,
    offset: u64,
    bytes: u64,
    blake3: String,
}

pub(super) fn run(args: &StageArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let view = View::open(&args.file, args.stage, out)?;
    let m = view.manifest();
    let labels: usize = m.tasks.iter().map(|t| t.labels.len()).sum();
    let names = part::names(m, view.sections());
    let sections: Vec<Section> = view
        .sections()
        .iter()
        .zip(names)
        .enumerate()
        .map(|(index, (r, name))| Section {
            index,
            name,
            kind: r.kind.name(),
            offset: r.offset,
            bytes: r.len,
            blake3: r.hex(),
        })
        .collect();
    if out.json() {
        out.object(&Show {
            schema: "conpet.inspect.show/1",
            file: args.file.display().to_string(),
            stage: view.stage(),
            digest: view.digest(),
            damage: view.damage(),
            base: &m.base,
            method: &m.method,
            trunk: m.trunk,
            tasks: m.tasks.len(),
            labels,
            selector: &m.selector,
            modules: &m.modules,
            heads: &m.heads,
            target_sets: &m.target_sets,
            sections,
            requires: &m.requires,
            ext: &m.ext,
        })?;
        return Ok(view.status());
    }
    let bytes: u64 = sections.iter().map(|s| s.bytes).sum();
    out.field("bundle", &args.file.display().to_string());
    out.field("stage", &format!("{}, commit {}", view.stage(), short(&view.digest())));
    out.field(
        "base",
        &format!("{} ({}, {}, {} bytes)", m.base.name, m.base.arch, m.base.quant, number(m.base.file_len)),
    );
    out.field("", &format!("structure {}, tokenizer {}", short(&m.base.structure), short(&m.base.tokenizer)));
    out.field("", &format!("file {}", m.base.file_blake3.join(" or ")));
    out.field("method", &m.method);
    out.field("trunk", &count(m.trunk as usize, "layer"));
    out.field("selector", &selector(m));
    out.field("tasks", &format!("{}, {}", count(m.tasks.len(), "task"), count(labels, "label")));
    out.field("payload", &format!("{}, {} bytes", count(sections.len(), "section"), number(bytes)));
    out.field("requires", &m.requires.join(", "));
    m.ext.iter().for_each(|(k, v)| out.field("ext", &format!("{k}: {v}")));
    if !m.modules.is_empty() {
        out.table("modules", &modules(m));
    }
    if !m.heads.is_empty() {
        out.table("heads", &heads(m));
    }
    if !sections.is_empty() {
        let mut t = Table::new(&[">#", "part", "kind", ">offset", ">bytes", "blake3"]);
        for s in &sections {
            let (i, at, len) = (s.index.to_string(), number(s.offset), number(s.bytes));
            t.row([&i, &s.name, s.kind, &at, &len, short(&s.blake3)]);
        }
        out.table("sections", &t);
    }
    Ok(view.status())
}

fn selector(m: &Manifest) -> String {
    let s = &m.selector;
    let mut text = s.kind.name().to_owned();
    if let Some(f) = &s.feature {
        text += &format!(
            ", reads {}; temperature {}{}; up to {} below margin {}",
            feature(f),
            s.temperature.as_str(),
            // Zero where the payload has a limit on novelty instead, or where nothing is refused.
            if s.threshold.to_f64() > 0.0 {
                format!(", abstains below {}", s.threshold.as_str())
            } else {
                String::new()
            },
            count(s.top_k as usize, "candidate"),
            s.margin.as_str()
        );
    }
    text
}

fn modules(m: &Manifest) -> Table {
    let mut t = Table::new(&["module", "kind", ">rank", ">scale", ">parameters", "type", ">sites", "targets", "tasks"]);
    for (i, x) in m.modules.iter().enumerate() {
        let i = i as u32;
        let serves = |t: &&TaskEntry| t.module == Some(i) || t.ensemble.contains(&i);
        let served = m.tasks.iter().filter(serves).map(|t| t.name.as_str());
        let own = (m.selector.module == Some(i)).then_some("(the selector's own)");
        let tasks: Vec<_> = served.chain(own).collect();
        let none = || "-".to_owned();
        let kind = x.pet.clone().unwrap_or_else(|| x.kind.name().to_owned());
        let rank = x.rank.map_or_else(none, |r| r.to_string());
        let scale = x.scale.as_ref().map_or_else(none, |s| s.as_str().to_owned());
        let parameters = x.train.get("numbers").cloned().unwrap_or_else(none);
        let sites = x.site_count.to_string();
        t.row([&x.id, &kind, &rank, &scale, &parameters, &x.dtype, &sites, &x.targets, &tasks.join(", ")]);
    }
    t
}

fn heads(m: &Manifest) -> Table {
    let mut t = Table::new(&["head", ">classes", "reads", ">temperature", ">blend", "tasks"]);
    for h in &m.heads {
        let tasks: Vec<_> = h.tasks.iter().filter_map(|t| m.tasks.get(*t as usize)).map(|t| t.name.as_str()).collect();
        let classes = h.classes.to_string();
        let (temperature, blend) = (h.temperature.as_str(), h.blend.as_str());
        t.row([&h.id, &classes, &feature(&h.feature), temperature, blend, &tasks.join(", ")]);
    }
    t
}

/// `mean of layer 10 + last of layer 16 (rms)`.
fn feature(f: &FeatureSpec) -> String {
    let parts: Vec<_> = f.parts.iter().map(|p| format!("{} of layer {}", p.pool, p.layer)).collect();
    format!("{} ({:?})", parts.join(" + "), f.norm).to_lowercase()
}
