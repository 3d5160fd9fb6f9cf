//! Exchange with other programs: PEFT folders ([`peft`]), llama.cpp's LoRA files ([`llama_lora`]) and
//! OCI image layouts ([`oci`]).
//!
//! What is exchanged is a [`Parcel`]: one module in the bundle's own layout, that is by GGUF site names, with
//! query and key rows in the order of the base's GGUF. A format is one file that reads and writes
//! parcels. What a parcel cannot hold is refused by name; nothing is dropped in silence.

pub mod llama_lora;
mod low_rank;
mod names;
pub mod oci;
pub mod peft;
mod rows;

use crate::bundle::manifest::{BaseRef, ModuleEntry, TaskEntry, TaskKind};
use crate::bundle::{Bundle, Draft, SectionKind};
use crate::error::clip;
use crate::mmap::Mapped;
use crate::model_spec::ModelSpec;
use crate::pet::{PetSpec, Site};
use crate::tensors::{Dtype, Tensors, TensorsWriter};
use crate::{Code, Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Longest JSON document or safetensors header read from another program, in bytes.
const JSON_CAP: usize = 16 << 20;

/// The formats that can be told apart by looking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// A folder with `adapter_config.json`.
    Peft,
    /// A GGUF file that is an adapter.
    LlamaLora,
    /// A folder with `oci-layout`.
    Oci,
}

/// Finds out which format lies at `path`.
///
/// # Errors
/// `E_UNSUPPORTED` for pickle files and for what is none of the three.
pub fn detect(path: &Path) -> Result<Source> {
    let refuse = |what: &str, hint: &str| Err(Error::new(Code::Unsupported, what).in_file(path).hint(hint));
    let folder = "give the PEFT folder (adapter_config.json beside adapter_model.safetensors), a llama.cpp LoRA file, or an OCI layout";
    let meta = std::fs::metadata(path).map_err(|e| Error::io("open", e).in_file(path))?;
    if meta.is_dir() {
        return if path.join("oci-layout").exists() {
            Ok(Source::Oci)
        } else if path.join(peft::CONFIG).exists() {
            Ok(Source::Peft)
        } else {
            refuse("neither adapter_config.json nor oci-layout is in this folder", folder)
        };
    }
    refuse_pickle_name(path)?;
    let bytes = Mapped::open(path)?;
    refuse_pickle(&bytes).map_err(|e| e.in_file(path))?;
    if bytes.starts_with(&crate::gguf::MAGIC) {
        return Ok(Source::LlamaLora);
    }
    refuse("this is no GGUF file", folder)
}

const PICKLE_HINT: &str = "a pickle file can run any program when it is read; save the adapter again as safetensors (PEFT: save_pretrained with safe_serialization=True)";

/// Refuses names that torch gives to pickle files.
fn refuse_pickle_name(path: &Path) -> Result<()> {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
    match extension.as_deref() {
        Some(e @ ("bin" | "pt" | "pth" | "ckpt" | "pkl" | "pickle")) => {
            Err(Error::new(Code::Unsupported, format!("a .{e} file is a pickle file, which is never read"))
                .in_file(path)
                .hint(PICKLE_HINT))
        }
        _ => Ok(()),
    }
}

/// Refuses pickle files and the ZIP archives that torch puts them in, whatever their name.
fn refuse_pickle(bytes: &[u8]) -> Result<()> {
    // A safetensors header of 640 bytes begins like a pickle of protocol 2; its ninth byte tells.
    let pickle = matches!(bytes, [0x80, 0..=5, ..]) && bytes.get(8) != Some(&b'{');
    if pickle || bytes.starts_with(b"PK\x03\x04") {
        let what = if pickle { "a pickle file" } else { "a ZIP archive, as torch.save writes" };
        return Err(Error::new(Code::Unsupported, format!("this is {what}, whatever its name"))
            .at(0)
            .hint(PICKLE_HINT));
    }
    Ok(())
}

/// One module on its way in or out, in the bundle's own layout.
#[derive(Debug, Clone, PartialEq)]
pub struct Parcel {
    /// What kind of module it is.
    pub pet: PetSpec,
    /// Its sites, sorted.
    pub sites: Vec<String>,
    /// Its tensors, as strict safetensors.
    pub payload: Vec<u8>,
    /// Type of the payload's values: F16 where that loses nothing, else F32.
    pub dtype: Dtype,
    /// Where it came from, for the manifest.
    pub origin: BTreeMap<String, String>,
    /// Remarks for the user.
    pub notes: Vec<String>,
}

/// The generation task that an imported module serves.
#[derive(Debug, Clone)]
pub struct NewTask {
    /// The task's name.
    pub name: String,
    /// Literal text around `{input}`.
    pub template: String,
    /// Longest answer, in tokens.
    pub max_answer: u32,
}

impl Parcel {
    /// From tensors by full name; each begins with the name of a site.
    fn new(pet: PetSpec, tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>) -> Result<Self> {
        let exact = |v: &f32| half::f16::from_f32(*v).to_f32().to_bits() == v.to_bits();
        let dtype = if tensors.values().all(|t| t.1.iter().all(exact)) { Dtype::F16 } else { Dtype::F32 };
        let mut w = TensorsWriter::new();
        let mut sites = Vec::new();
        let mut parameters = 0;
        for (name, (shape, values)) in &tensors {
            match dtype {
                Dtype::F16 => w.add_f16(name, shape, values)?,
                _ => w.add_f32(name, shape, values)?,
            }
            sites.push(name.rsplit_once('.').map_or(name.as_str(), |(site, _)| site).to_owned());
            parameters += values.len();
        }
        sites.sort();
        sites.dedup();
        let payload = w.finish()?;
        Tensors::parse(&payload)?;
        let origin = BTreeMap::from([("numbers".into(), parameters.to_string())]);
        Ok(Self { pet, sites, payload, dtype, origin, notes: Vec::new() })
    }

    /// Records where it came from.
    fn from(mut self, format: &str, file: &[u8], known_base: bool) -> Self {
        self.origin.insert("source".into(), format.into());
        self.origin.insert("source_blake3".into(), crate::fingerprint::file_digest(file));
        self.origin.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        if !known_base {
            self.notes.push(
                "the adapter does not say which weights it was trained on: its shapes fit this base, more cannot be checked".into(),
            );
        }
        self
    }

    /// Takes a module out of a bundle.
    ///
    /// # Errors
    /// If its section is damaged, or there is no such module.
    pub fn of(bundle: &Bundle, module: usize) -> Result<Self> {
        let m = bundle.manifest();
        let entry =
            m.modules.get(module).ok_or_else(|| Error::new(Code::Missing, format!("there is no module {module}")))?;
        let payload = bundle.section(entry.section)?.to_vec();
        let dtype = if entry.dtype == "F16" { Dtype::F16 } else { Dtype::F32 };
        let sites = m.target_sets.get(&entry.targets).cloned().unwrap_or_default();
        Ok(Self { pet: entry.pet()?, sites, payload, dtype, origin: entry.train.clone(), notes: Vec::new() })
    }

    /// Enters the module, and the task it serves, into a stage that is being prepared.
    ///
    /// # Errors
    /// If it acts below the trunk that the bundle's modules share, or the name is taken.
    pub fn enter(self, draft: &mut Draft, spec: &ModelSpec, task: NewTask) -> Result<()> {
        let m = &draft.manifest;
        if m.tasks.iter().any(|t| t.name == task.name) {
            return Err(Error::new(Code::Duplicate, format!("the bundle already has a task {:?}", task.name))
                .hint("choose another --task"));
        }
        let layers = self.sites.iter().map(|s| Site::parse(spec, s).map(|s| s.layer));
        let first = layers.collect::<Result<Vec<_>>>()?.into_iter().min().unwrap_or(0);
        if first < m.trunk as usize {
            return Err(Error::new(
                Code::Layout,
                format!("the module acts on layer {first}, below the bundle's trunk of {} layers", m.trunk),
            )
            .hint("import it into a bundle of its own (a new file), whose trunk is 0"));
        }
        let stage = draft.stage();
        let section = draft.add_section(SectionKind::Module, self.payload);
        let m = &mut draft.manifest;
        let (index, targets) = (m.modules.len(), m.intern_targets(&self.sites));
        let entry = ModuleEntry::new(index, &self.pet, section, targets, self.sites.len());
        m.modules.push(ModuleEntry { dtype: self.dtype.name().into(), train: self.origin, ..entry });
        m.tasks.push(TaskEntry {
            ensemble: Vec::new(),
            head: None,
            id: m.tasks.len() as u32,
            kind: TaskKind::Generation,
            labels: Vec::new(),
            max_answer: task.max_answer,
            module: Some(index as u32),
            name: task.name,
            stage,
            template: task.template,
        });
        Ok(())
    }

    /// The only part of a module of one kind.
    ///
    /// # Errors
    /// `E_UNSUPPORTED` if it has several: no other format can hold them.
    fn only(&self, format: &str) -> Result<&crate::pet::Part> {
        match self.pet.parts() {
            [one] => Ok(one),
            _ => Err(Error::new(Code::Unsupported, format!("the module is {}, and {format} holds one kind", self.pet))
                .hint("conpet-inspect extract copies any module as it is")),
        }
    }

    /// The shape and values of one of its tensors.
    fn tensor(&self, tensors: &Tensors<'_>, site: Site, what: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let name = format!("{site}.{what}");
        let t =
            tensors.get(&name).ok_or_else(|| Error::new(Code::Missing, format!("the module lacks tensor {name}")))?;
        let values = t.to_f32();
        Ok((t.shape, values))
    }

    fn sites(&self, spec: &ModelSpec) -> Result<Vec<Site>> {
        self.sites.iter().map(|s| Site::parse(spec, s)).collect()
    }
}

/// Metadata keys of an exported adapter that say which base it belongs to.
const BASE_KEYS: [&str; 3] = ["conpet.base.structure", "conpet.base.tokenizer", "conpet.base.sample"];

/// These keys with their values.
fn base_entries(base: &BaseRef) -> [(&'static str, &str); 3] {
    let values = [&base.structure, &base.tokenizer, &base.sample];
    std::array::from_fn(|i| (BASE_KEYS[i], values[i].as_str()))
}

/// Compares what an adapter says of its base with the one given; false if it says nothing.
///
/// # Errors
/// `E_BASE`, naming the first part that differs.
fn check_origin(base: &BaseRef, said: impl Fn(&str) -> Option<String>) -> Result<bool> {
    let mut any = false;
    for (key, have) in base_entries(base) {
        let Some(want) = said(key) else { continue };
        any = true;
        if want != have {
            let part = key.rsplit('.').next().unwrap_or(key);
            return Err(Error::new(
                Code::BaseMismatch,
                format!("this base's {part} is {have}, the adapter was exported for {want}"),
            )
            .hint("give the base that the adapter was exported for"));
        }
    }
    Ok(any)
}

/// The error for a tensor that does not fit the base.
fn misfit(name: &str, shape: &[usize], want: &str) -> Error {
    Error::new(Code::BaseMismatch, format!("shape {shape:?}, this base needs {want}"))
        .in_section(format!("tensor {}", clip(name)))
        .hint("the adapter was made for a base of another size; give that base")
}
