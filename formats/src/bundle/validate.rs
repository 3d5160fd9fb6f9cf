//! The rules a manifest keeps beyond its syntax.

use super::commit::{SectionKind, SectionRecord};
use super::manifest::{FORMAT, Manifest, TaskEntry, TaskKind};
use crate::error::clip;
use crate::head::HeadKind;
use crate::pet::PetKind;
use crate::selector::SelectorKind;
use crate::{Code, Error, Result, template};
use std::collections::BTreeSet;

const TASK_CAP: usize = 4096;
const LABEL_CAP: usize = 10_000;
/// Entries of `target_sets`, of `ext`, of a module's `train`.
const MAP_CAP: usize = 16_384;
const TEXT_CAP: usize = 256;
/// As many layers as a base may have.
const LAYER_CAP: u32 = 512;

/// True for a feature of a manifest that this release understands.
fn known(requirement: &str) -> bool {
    match requirement.split_once(':') {
        Some(("kind", name)) => PetKind::ALL.iter().any(|k| k.name() == name),
        Some(("selector", name)) => SelectorKind::ALL.iter().any(|k| k.name() == name),
        Some(("head", name)) => HeadKind::ALL.iter().any(|k| !k.is_linear() && k.name() == name),
        _ => requirement == "ensemble:max" || requirement == "task:selector",
    }
}

/// What a manifest requires of its readers, sorted.
pub(super) fn requires(m: &Manifest) -> Vec<String> {
    let mut out = BTreeSet::new();
    for x in &m.modules {
        let parts = x.pet().map(|p| p.parts().iter().map(|p| p.pet.kind()).collect());
        // What is no spec is refused by name when the modules are checked.
        let kinds: Vec<PetKind> = parts.unwrap_or_else(|_| vec![x.kind]);
        out.extend(kinds.iter().map(|k| format!("kind:{}", k.name())));
    }
    out.insert(format!("selector:{}", m.selector.kind.name()));
    if m.tasks.iter().any(|t| !t.ensemble.is_empty()) {
        out.insert("ensemble:max".into());
    }
    if m.tasks.iter().any(TaskEntry::by_selector) {
        out.insert("task:selector".into());
    }
    out.extend(m.heads.iter().filter(|h| !h.kind.is_linear()).map(|h| format!("head:{}", h.kind.name())));
    out.into_iter().collect()
}

/// Checks a manifest that is not yet in a file, against the kinds of the sections it will have.
pub fn check_manifest(m: &Manifest, kinds: &[SectionKind]) -> Result<()> {
    let records: Vec<SectionRecord> =
        kinds.iter().map(|kind| SectionRecord { hash: [0; 32], offset: 0, len: 1, kind: *kind }).collect();
    check(m, &records)
}

/// Checks every rule; the error names the field.
pub(super) fn check(m: &Manifest, sections: &[SectionRecord]) -> Result<()> {
    inner(m, sections).map_err(|e| e.in_section("manifest"))
}

fn value(message: String) -> Error {
    Error::new(Code::Value, message)
}

fn inner(m: &Manifest, sections: &[SectionRecord]) -> Result<()> {
    if m.format != FORMAT {
        return Err(Error::new(Code::Version, format!("format {:?}, this reader knows {FORMAT:?}", clip(&m.format))));
    }
    if let Some(r) = m.requires.iter().find(|r| !known(r)) {
        return Err(Error::new(Code::Requires, format!("the bundle requires {:?}, which this release lacks", clip(r)))
            .hint("use a newer conpet"));
    }
    if m.requires != requires(m) {
        return Err(value(format!("requires {:?} is not what the content needs, {:?}", m.requires, requires(m))));
    }
    for (what, digest) in
        [("sample", &m.base.sample), ("structure", &m.base.structure), ("tokenizer", &m.base.tokenizer)]
            .into_iter()
            .chain(m.base.file_blake3.iter().map(|d| ("file_blake3", d)))
    {
        if digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(value(format!("base.{what} {:?} is not 64 lower-case hex digits", clip(digest))));
        }
    }
    if m.base.file_blake3.is_empty() {
        return Err(value("base.file_blake3 names no file".into()));
    }
    if m.tasks.len() > TASK_CAP || m.modules.len() > TASK_CAP || m.heads.len() > TASK_CAP {
        return Err(Error::new(Code::Cap, format!("more than {TASK_CAP} tasks, modules or heads")));
    }
    let maps = m.modules.iter().map(|x| x.train.len()).chain([m.target_sets.len(), m.ext.len()]);
    if maps.into_iter().any(|n| n > MAP_CAP) {
        return Err(Error::new(Code::Cap, format!("more than {MAP_CAP} entries in target_sets, ext or train")));
    }
    let mut used = vec![false; sections.len()];
    let mut claim = |index: u32, kind: SectionKind, who: &str| -> Result<()> {
        let s = sections.get(index as usize).ok_or_else(|| {
            Error::new(Code::Missing, format!("{who} names section {index}, there are {}", sections.len()))
        })?;
        if s.kind != kind {
            return Err(Error::new(Code::Type, format!("{who} names section {index}, which is a {}", s.kind.name())));
        }
        if std::mem::replace(&mut used[index as usize], true) {
            return Err(Error::new(Code::Duplicate, format!("{who} names section {index}, which something else uses")));
        }
        Ok(())
    };
    for (i, x) in m.modules.iter().enumerate() {
        let who = format!("module {}", clip(&x.id));
        if x.id != format!("m{i:04}") {
            return Err(value(format!("module {i} has the id {:?}", clip(&x.id))));
        }
        x.pet().map_err(|e| e.in_section(who.clone()))?;
        let sites = m
            .target_sets
            .get(&x.targets)
            .ok_or_else(|| Error::new(Code::Missing, format!("{who}: no target set {:?}", clip(&x.targets))))?;
        if sites.len() != x.site_count as usize {
            return Err(value(format!("{who}: {} sites declared, {} listed", x.site_count, sites.len())));
        }
        if x.dtype != "F16" && x.dtype != "F32" {
            return Err(Error::new(Code::Type, format!("{who}: dtype {:?}", clip(&x.dtype))));
        }
        claim(x.section, SectionKind::Module, &who)?;
        x.train.iter().try_for_each(|(k, v)| text(&who, k).and_then(|()| text(&who, v)))?;
    }
    for (name, sites) in &m.target_sets {
        text("target set", name)?;
        if !sites.windows(2).all(|w| w[0] < w[1]) {
            return Err(value(format!("target set {name:?} is not sorted, or lists a site twice")));
        }
        sites.iter().try_for_each(|s| text("site", s))?;
    }
    tasks(m)?;
    for (i, h) in m.heads.iter().enumerate() {
        let who = format!("head {}", clip(&h.id));
        if h.id != format!("h{i:04}") {
            return Err(value(format!("head {i} has the id {:?}", clip(&h.id))));
        }
        let labels: usize = h.tasks.iter().filter_map(|t| m.tasks.get(*t as usize)).map(|t| t.labels.len()).sum();
        if h.tasks.iter().any(|t| *t as usize >= m.tasks.len()) || labels != h.classes as usize || labels == 0 {
            return Err(value(format!("{who}: {} classes for tasks {:?} with {labels} labels", h.classes, h.tasks)));
        }
        h.feature.check(LAYER_CAP).map_err(|e| e.in_section(who.clone()))?;
        if h.temperature.to_f64() <= 0.0 || !(0.0..=100.0).contains(&h.blend.to_f64()) {
            return Err(value(format!("{who}: temperature {} or blend {}", h.temperature.as_str(), h.blend.as_str())));
        }
        claim(h.section, SectionKind::Head, &who)?;
    }
    selector(m, &mut claim)?;
    if let Some(i) = (0..sections.len()).find(|i| !used[*i] && !matches!(sections[*i].kind, SectionKind::Other(_))) {
        return Err(value(format!("nothing refers to section {i}, a {}", sections[i].kind.name())));
    }
    m.ext.iter().try_for_each(|(k, v)| text("ext", k).and_then(|()| text("ext", v)))?;
    if m.trunk > LAYER_CAP {
        return Err(Error::new(Code::Cap, format!("a trunk of {} layers, cap {LAYER_CAP}", m.trunk)));
    }
    let words = [("method", &m.method), ("base.name", &m.base.name), ("base.arch", &m.base.arch)];
    words.into_iter().try_for_each(|(who, s)| text(who, s))?;
    text("base.quant", &m.base.quant)
}

fn tasks(m: &Manifest) -> Result<()> {
    let mut names = BTreeSet::new();
    for (i, t) in m.tasks.iter().enumerate() {
        let who = format!("task {}", clip(&t.name));
        text("task name", &t.name)?;
        if t.id as usize != i {
            return Err(value(format!("{who} has the id {}, not {i}", t.id)));
        }
        if t.name.is_empty() || !names.insert(&t.name) {
            return Err(Error::new(Code::Duplicate, format!("task name {:?} is empty or used twice", clip(&t.name))));
        }
        if t.labels.len() > LABEL_CAP {
            return Err(Error::new(Code::Cap, format!("{who}: {} labels, cap {LABEL_CAP}", t.labels.len())));
        }
        let mut labels = BTreeSet::new();
        for l in &t.labels {
            text(&who, l)?;
            if l.is_empty() || !labels.insert(l) {
                return Err(Error::new(
                    Code::Duplicate,
                    format!("{who}: label {:?} is empty or occurs twice", clip(l)),
                ));
            }
        }
        template::check(&t.template).map_err(|e| e.in_section(who.clone()))?;
        let classifies = t.kind == TaskKind::Classification;
        if classifies == t.labels.is_empty() || !classifies && t.head.is_some() {
            return Err(value(format!(
                "{who}: a classification task has labels, a generation task has neither labels nor a head"
            )));
        }
        if t.by_selector() && (t.module.is_some() || !m.selector.kind.scores_classes()) {
            return Err(value(format!(
                "{who}: it has no head, so it has no module, and the selector scores its labels"
            )));
        }
        if t.module.is_some_and(|x| x as usize >= m.modules.len())
            || t.head.is_some_and(|x| x as usize >= m.heads.len())
        {
            return Err(Error::new(Code::Missing, format!("{who}: its module or head does not exist")));
        }
        let mut experts = BTreeSet::from_iter(t.module);
        if !t.ensemble.is_empty() && (t.module.is_none() || t.head.is_none()) {
            return Err(value(format!("{who}: an ensemble needs a module and a head beside it")));
        }
        if let Some(x) = t.ensemble.iter().find(|x| **x as usize >= m.modules.len() || !experts.insert(**x)) {
            return Err(value(format!("{who}: its ensemble names module {x}, which does not exist or is named twice")));
        }
        if t.head.is_some_and(|h| !m.heads[h as usize].tasks.contains(&t.id)) {
            return Err(value(format!("{who}: its head does not serve it")));
        }
        if t.stage == 0 || t.stage > m.stage {
            return Err(value(format!("{who}: learned at stage {}, but this is stage {}", t.stage, m.stage)));
        }
    }
    Ok(())
}

fn selector(m: &Manifest, claim: &mut impl FnMut(u32, SectionKind, &str) -> Result<()>) -> Result<()> {
    let s = &m.selector;
    let reads = s.kind.reads();
    if reads != s.feature.is_some() || reads != s.section.is_some() {
        return Err(value(format!(
            "a {} selector {} a feature and a section",
            s.kind.name(),
            if reads { "needs" } else { "has not" }
        )));
    }
    if (s.kind == SelectorKind::Conpet) != s.module.is_some() || s.module.is_some_and(|x| x as usize >= m.modules.len())
    {
        return Err(value("only a conpet selector has a module of its own, and it must exist".into()));
    }
    if s.temperature.to_f64() <= 0.0 || s.top_k == 0 {
        return Err(value(format!("selector temperature {} or top_k {}", s.temperature.as_str(), s.top_k)));
    }
    if [s.margin.to_f64(), s.threshold.to_f64()].iter().any(|v| !(0.0..=1.0).contains(v)) {
        return Err(value(format!(
            "selector margin {} or threshold {} is not from 0 to 1",
            s.margin.as_str(),
            s.threshold.as_str()
        )));
    }
    if let Some(f) = &s.feature {
        f.check(LAYER_CAP).map_err(|e| e.in_section("selector"))?;
    }
    if let Some(i) = s.section {
        claim(i, SectionKind::Selector, "the selector")?;
    }
    if let Some(i) = s.stats {
        claim(i, SectionKind::Stats, "the selector's statistics")?;
    }
    Ok(())
}

/// Text of a manifest: at most 256 bytes, no control or direction-changing characters.
fn text(who: &str, s: &str) -> Result<()> {
    let bad = |c: char| {
        c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    if s.len() > TEXT_CAP {
        return Err(Error::new(Code::Cap, format!("{who}: {:?}... is {} bytes, cap {TEXT_CAP}", clip(s), s.len())));
    }
    if s.contains(bad) {
        return Err(Error::new(Code::Text, format!("{who}: {:?} has a control character", clip(s))));
    }
    Ok(())
}
