//! `export` writes a module for PEFT or llama.cpp, or the whole bundle for a registry.

use super::count;
use crate::cli::ExportArgs;
use crate::exit::{self, ExitStatus, Failure};
use crate::output::Output;
use crate::view;
use conpet_formats::bundle::Bundle;
use conpet_formats::bundle::manifest::{Manifest, TaskEntry};
use conpet_formats::exchange::{Parcel, llama_lora, oci, peft};
use conpet_formats::fingerprint::{CheckDepth, check_base};
use conpet_formats::fs;
use conpet_formats::gguf::Shards;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::template;
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Export {
    schema: &'static str,
    file: String,
    stage: u64,
    format: &'static str,
    to: String,
    /// `None` for a whole bundle.
    module: Option<Module>,
    /// Digest of the OCI manifest.
    manifest: Option<String>,
    /// What was left behind.
    lost: Vec<String>,
}

#[derive(Serialize)]
struct Module {
    id: String,
    pet: String,
    sites: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Peft,
    Gguf,
    Oci,
}

impl Format {
    const ALL: [Self; 3] = [Self::Peft, Self::Gguf, Self::Oci];

    fn name(self) -> &'static str {
        match self {
            Self::Peft => "peft",
            Self::Gguf => "gguf",
            Self::Oci => "oci",
        }
    }
}

pub(super) fn run(args: &ExportArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let (word, to) = (args.to[0].to_string_lossy(), Path::new(&args.to[1]));
    let format = Format::ALL.into_iter().find(|f| f.name() == word).ok_or_else(|| {
        Failure::usage(format!("there is no format {word}"), "formats are peft DIR, gguf FILE and oci DIR")
    })?;
    let mut bundle = Bundle::open(&args.file)?;
    if let Some(stage) = args.stage.filter(|s| *s != bundle.stage()) {
        bundle = view::older(&bundle, stage)?;
    }
    bundle.warnings().iter().for_each(|w| out.warn(&format!("{}: {w}", args.file.display())));
    let result = if format == Format::Oci { layout(args, &bundle, to)? } else { module(args, &bundle, format, to)? };
    if out.json() {
        out.object(&result)?;
        return Ok(ExitStatus::Success);
    }
    out.field("wrote", &result.to);
    if let Some(m) = &result.module {
        out.field("module", &format!("{} of stage {}, {}, {}", m.id, result.stage, m.pet, count(m.sites, "site")));
    }
    if let Some(digest) = &result.manifest {
        out.field("manifest", digest);
    }
    result.lost.iter().for_each(|l| out.warn(&format!("left behind: {l}")));
    Ok(ExitStatus::Success)
}

fn module(args: &ExportArgs, bundle: &Bundle, format: Format, to: &Path) -> Result<Export, Failure> {
    let m = bundle.manifest();
    let wanted = args.part.as_ref().ok_or_else(|| {
        Failure::usage(
            "no module is named",
            "give a module (m0000) or a task before --to; conpet-inspect tasks lists them",
        )
    })?;
    let index = find(m, wanted)?;
    let base = args.hub.or(args.base.as_deref())?;
    let base = base.as_deref().ok_or_else(|| {
        Failure::usage(
            "--base is missing",
            "give the bundle's base with -m BASE.gguf: its heads decide the order of rows",
        )
    })?;
    let files = Shards::open(base)?;
    let gguf = files.gguf()?;
    check_base(&m.base, &gguf, CheckDepth::Quick).map_err(|e| e.in_file(base))?;
    let spec = ModelSpec::from_gguf(&gguf).map_err(|e| e.in_file(base))?;
    let entry = &m.modules[index];
    let lost = lost(m, index);
    if let Some(first) = lost.first().filter(|_| !args.lossy) {
        return Err(Failure::usage(
            format!(
                "{} cannot hold all of the task: {first}",
                if format == Format::Peft { "PEFT" } else { "llama.cpp" }
            ),
            "add --lossy to write the module alone",
        ));
    }
    let parcel = Parcel::of(bundle, index).map_err(|e| e.in_section(format!("module {}", entry.id)))?;
    let name = m.tasks.iter().find(|t| t.module == Some(index as u32)).map_or(entry.id.as_str(), |t| t.name.as_str());
    match format {
        Format::Gguf => fs::create_new(to, |w| llama_lora::write(w, &parcel, &spec, &m.base, name)),
        _ => peft::write(to, &parcel, &spec, &m.base, args.base_name.as_deref()),
    }
    .map_err(exit::creating)?;
    Ok(Export {
        schema: "conpet.inspect.export/1",
        file: args.file.display().to_string(),
        stage: bundle.stage(),
        format: format.name(),
        to: to.display().to_string(),
        module: Some(Module { id: entry.id.clone(), pet: parcel.pet.to_string(), sites: parcel.sites.len() }),
        manifest: None,
        lost,
    })
}

/// The module with this id, or of the task with this name.
fn find(m: &Manifest, wanted: &str) -> Result<usize, Failure> {
    let task = m.tasks.iter().find(|t| t.name == wanted);
    let of_task = || task.and_then(|t| t.module).map(|i| i as usize);
    m.modules.iter().position(|x| x.id == wanted).or_else(of_task).ok_or_else(|| match task {
        Some(_) => Failure::usage(format!("task {wanted} has no module"), "it is answered by the bare base"),
        None => {
            let known: Vec<_> = m.modules.iter().map(|x| x.id.as_str()).collect();
            Failure::usage(
                format!("no module or task is called {wanted}"),
                format!("this stage has {}", known.join(", ")),
            )
        }
    })
}

/// The parts of the module's tasks for which another program's adapter has no place.
fn lost(m: &Manifest, module: usize) -> Vec<String> {
    let of = |t: &&TaskEntry| t.module == Some(module as u32) || t.ensemble.contains(&(module as u32));
    let mut out = Vec::new();
    for t in m.tasks.iter().filter(of) {
        if t.head.is_some() {
            out.push(format!("the head and the {} of task {}", count(t.labels.len(), "label"), t.name));
        }
        if !t.ensemble.is_empty() {
            out.push(format!("the other modules of the ensemble of task {}", t.name));
        }
        if t.template != template::INPUT {
            out.push(format!("the template of task {}: {}", t.name, t.template));
        }
    }
    out
}

fn layout(args: &ExportArgs, bundle: &Bundle, to: &Path) -> Result<Export, Failure> {
    if args.part.is_some() || args.stage.is_some() {
        return Err(Failure::usage(
            "an OCI layout holds the whole bundle, not one module or stage",
            "leave the module and --stage out",
        ));
    }
    let written = oci::write(to, &args.file, args.hub.or(args.base.as_deref())?.as_deref()).map_err(exit::creating)?;
    Ok(Export {
        schema: "conpet.inspect.export/1",
        file: args.file.display().to_string(),
        stage: bundle.stage(),
        format: "oci",
        to: to.display().to_string(),
        module: None,
        manifest: Some(written.manifest),
        lost: Vec::new(),
    })
}
