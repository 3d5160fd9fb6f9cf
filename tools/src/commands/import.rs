//! `import` makes another program's adapter a task of a bundle, or takes a bundle out of an OCI layout.

use super::count;
use crate::cli::ImportArgs;
use crate::exit::{self, ExitStatus, Failure};
use crate::output::Output;
use conpet_formats::bundle::{Bundle, Draft};
use conpet_formats::exchange::{self, NewTask, Parcel, Source};
use conpet_formats::fingerprint::{CheckDepth, base_ref, check_base};
use conpet_formats::gguf::Shards;
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::ModelSpec;
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Import {
    schema: &'static str,
    from: String,
    format: &'static str,
    bundle: String,
    stage: u64,
    created: bool,
    /// `None` for a whole bundle.
    module: Option<Module>,
    /// Where an OCI layout's base was written.
    base: Option<String>,
    notes: Vec<String>,
}

#[derive(Serialize)]
struct Module {
    task: String,
    id: String,
    pet: String,
    sites: usize,
    dtype: &'static str,
}

pub(super) fn run(args: &ImportArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let source = exchange::detect(&args.from)?;
    let result = if source == Source::Oci { layout(args)? } else { adapter(args, source)? };
    if out.json() {
        out.object(&result)?;
        return Ok(ExitStatus::Success);
    }
    let how = if result.created { "new file" } else { "appended" };
    out.field("bundle", &format!("{} ({how}, stage {})", result.bundle, result.stage));
    if let Some(m) = &result.module {
        out.field("task", &m.task);
        out.field("module", &format!("{}, {}, {}, {}", m.id, m.pet, count(m.sites, "site"), m.dtype));
    }
    if let Some(base) = &result.base {
        out.field("base", &format!("{base} (new file)"));
    }
    result.notes.iter().for_each(|n| out.warn(n));
    Ok(ExitStatus::Success)
}

fn adapter(args: &ImportArgs, source: Source) -> Result<Import, Failure> {
    let missing = |what: &str, hint: &str| Failure::usage(format!("{what} is missing"), hint);
    let base = args.hub.or(args.base.as_deref())?;
    let base = base.as_deref().ok_or_else(|| missing("--base", "give the adapter's base with -m BASE.gguf"))?;
    let name = args.task.clone().ok_or_else(|| missing("--task", "give the new task a name with --task NAME"))?;
    let files = Shards::open(base)?;
    let gguf = files.gguf()?;
    let spec = ModelSpec::from_gguf(&gguf).map_err(|e| e.in_file(base))?;
    let existing = match args.bundle.symlink_metadata() {
        Ok(_) => Some(Bundle::open(&args.bundle)?),
        Err(_) => None,
    };
    let base_ref = match &existing {
        Some(b) => {
            check_base(&b.manifest().base, &gguf, CheckDepth::Full).map_err(|e| e.in_file(base))?;
            b.manifest().base.clone()
        }
        None => base_ref(&gguf).map_err(|e| e.in_file(base))?,
    };
    let parcel = match source {
        Source::LlamaLora => {
            let file = Mapped::open(&args.from)?;
            exchange::llama_lora::read(&file, &spec, &base_ref).map_err(|e| e.in_file(&args.from))?
        }
        _ => exchange::peft::read(&args.from, &spec, &base_ref)?,
    };
    enter(args, source, existing, &spec, (base_ref, parcel), name)
}

/// Writes a stage with the module and its task.
fn enter(
    args: &ImportArgs,
    source: Source,
    existing: Option<Bundle>,
    spec: &ModelSpec,
    (base, parcel): (conpet_formats::bundle::manifest::BaseRef, Parcel),
    name: String,
) -> Result<Import, Failure> {
    let mut notes = parcel.notes.clone();
    if existing.as_ref().is_some_and(|b| b.manifest().selector.kind.reads()) {
        notes.push(format!("the bundle's selector has not learned this task: choose it by name, --task {name}"));
    }
    let (pet, sites, dtype) = (parcel.pet.to_string(), parcel.sites.len(), parcel.dtype.name());
    let mut draft = match &existing {
        Some(b) => Draft::from_bundle(b),
        None => Draft::new(base, "import", 0),
    };
    let task = NewTask { name: name.clone(), template: args.template.clone(), max_answer: args.max_answer };
    parcel.enter(&mut draft, spec, task).map_err(exit::creating)?;
    let (stage, id) = (draft.stage(), format!("m{:04}", draft.manifest.modules.len() - 1));
    let created = existing.is_none();
    if created {
        draft.create(&args.bundle).map_err(exit::creating)?
    } else {
        draft.append(&args.bundle)?
    }
    Ok(Import {
        schema: "conpet.inspect.import/1",
        from: args.from.display().to_string(),
        format: if source == Source::Peft { "peft" } else { "gguf" },
        bundle: args.bundle.display().to_string(),
        stage,
        created,
        module: Some(Module { task: name, id, pet, sites, dtype }),
        base: None,
        notes,
    })
}

fn layout(args: &ImportArgs) -> Result<Import, Failure> {
    if args.task.is_some() {
        return Err(Failure::usage("an OCI layout holds a whole bundle, so --task means nothing", "leave --task out"));
    }
    let base = args.hub.or(args.base.as_deref())?;
    let base = base.as_deref();
    let brought = base.filter(|b: &&Path| !b.exists());
    exchange::oci::read(&args.from, &args.bundle, base).map_err(exit::creating)?;
    let bundle = Bundle::open(&args.bundle)?;
    Ok(Import {
        schema: "conpet.inspect.import/1",
        from: args.from.display().to_string(),
        format: "oci",
        bundle: args.bundle.display().to_string(),
        stage: bundle.stage(),
        created: true,
        module: None,
        base: brought.map(|b| b.display().to_string()),
        notes: Vec::new(),
    })
}
