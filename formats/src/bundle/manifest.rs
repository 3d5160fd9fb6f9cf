//! The manifest of one stage: what is in the bundle and how it fits together.
//!
//! Serialised as canonical JSON (sorted keys, no whitespace, no floats, integers below 2^53);
//! parsing re-serialises and compares, so each manifest has exactly one spelling. Plain structs
//! only: no untagged, flattened or internally tagged types, because another crate in the build
//! may turn on serde_json's `arbitrary_precision`, which breaks those.

use crate::decimal::Decimal;
use crate::feature::FeatureSpec;
use crate::head::HeadKind;
use crate::pet::lora::Scaling;
use crate::pet::{Kind, Lora, PetKind, PetSpec};
use crate::selector::SelectorKind;
use crate::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The value of [`Manifest::format`].
pub const FORMAT: &str = "conpet.bundle/1";

/// What a stage contains. Field order is alphabetical: canonical JSON sorts keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The base all modules were trained on.
    pub base: BaseRef,
    /// Free text to text, ignorable by readers.
    pub ext: BTreeMap<String, String>,
    /// [`FORMAT`].
    pub format: String,
    /// The stage's number, which its commit repeats. Written as `generation`, and sorted by that name.
    #[serde(rename = "generation")]
    pub stage: u64,
    /// Heads, in order of creation.
    pub heads: Vec<HeadEntry>,
    /// How the stream was learned: `dynamic`, `sequential`, `joint`, ...
    pub method: String,
    /// Modules, in order of creation.
    pub modules: Vec<ModuleEntry>,
    /// Features a reader must know, e.g. `kind:lora`, `selector:lda`; sorted.
    pub requires: Vec<String>,
    /// What chooses among tasks.
    pub selector: SelectorEntry,
    /// Named lists of sites (GGUF tensor names), interned because modules repeat them; sorted lists.
    pub target_sets: BTreeMap<String, Vec<String>>,
    /// Tasks in the order learned; a task's `id` is its index.
    pub tasks: Vec<TaskEntry>,
    /// No module acts below this layer: the prompt passes it once for all modules.
    pub trunk: u32,
}

/// The base fingerprint (see [`crate::fingerprint`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseRef {
    /// `general.architecture`.
    pub arch: String,
    /// BLAKE3 of each GGUF file that is this base, lower-case hex.
    pub file_blake3: Vec<String>,
    /// Length of the GGUF it was trained on, in bytes.
    pub file_len: u64,
    /// `general.name`.
    pub name: String,
    /// Most common quant type of the linears, for people.
    pub quant: String,
    /// BLAKE3 over 64 blocks of 4 KiB spread over the file: what a quick check compares.
    pub sample: String,
    /// BLAKE3 over the structure (hyper-parameters, tensor names and shapes).
    pub structure: String,
    /// BLAKE3 over the tokenizer.
    pub tokenizer: String,
}

/// A trained head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadEntry {
    /// Weight of the selector's own class posterior when the two are joined,
    /// `log p = log p_head + blend * log p_selector`; fitted on validation data.
    pub blend: Decimal,
    /// Rows of the head: all labels of its tasks, in order.
    pub classes: u32,
    /// What it reads. A choice head reads the last token's state, as the language model does.
    pub feature: FeatureSpec,
    /// Stable id, `h0000`.
    pub id: String,
    /// How it scores; not written where it is linear, as in bundles of earlier releases.
    #[serde(default, skip_serializing_if = "HeadKind::is_linear")]
    pub kind: HeadKind,
    /// Section index of the payload.
    pub section: u32,
    /// Tasks whose labels are its rows, in order.
    pub tasks: Vec<u32>,
    /// Divides the logits; fitted on validation data.
    pub temperature: Decimal,
}

/// A trained PET module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleEntry {
    /// LoRA alpha (provenance; must agree with `scale`). This, `rank`, `scale` and `scaling` are there
    /// if and only if the module is one LoRA and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<Decimal>,
    /// Payload dtype, `F16` or `F32`.
    pub dtype: String,
    /// Stable id, `m0000`.
    pub id: String,
    /// PET kind; of several, the first.
    pub kind: PetKind,
    /// The canonical text of a [`PetSpec`]; absent where the module is one LoRA and nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pet: Option<String>,
    /// LoRA rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<u32>,
    /// The factor `s` at every site.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale: Option<Decimal>,
    /// The rule that gave `scale`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaling: Option<Scaling>,
    /// Section index of the payload.
    pub section: u32,
    /// Number of sites hooked; loading fails unless exactly these are.
    pub site_count: u32,
    /// Key into `target_sets`.
    pub targets: String,
    /// Provenance of training: seed, rows, steps, data digest, ...
    pub train: BTreeMap<String, String>,
}

impl Manifest {
    /// The name of the target set with exactly these sites (sorted); a new one if there is none.
    pub fn intern_targets(&mut self, sites: &[String]) -> String {
        if let Some((known, _)) = self.target_sets.iter().find(|(_, s)| *s == sites) {
            return known.clone();
        }
        let free = |n: &String| !self.target_sets.contains_key(n);
        let name = (self.target_sets.len()..).map(|n| format!("t{n}")).find(free).unwrap_or_default();
        self.target_sets.insert(name.clone(), sites.to_vec());
        name
    }
}

impl ModuleEntry {
    /// The entry of the `index`-th module, with an F16 payload in this section and no provenance yet; `targets` names
    /// its `site_count` sites. A single LoRA is written as rank, alpha and scale, as in bundles of every release,
    /// and anything else as the text of its spec.
    pub fn new(index: usize, pet: &PetSpec, section: u32, targets: String, site_count: usize) -> Self {
        let lora = pet.only_lora();
        Self {
            alpha: lora.map(|l| Decimal::from_f64(l.alpha)),
            dtype: "F16".into(),
            id: format!("m{index:04}"),
            kind: pet.parts()[0].pet.kind(),
            pet: lora.is_none().then(|| pet.to_string()),
            rank: lora.map(|l| l.rank as u32),
            scale: lora.map(|l| Decimal::from_f64(l.scale())),
            scaling: lora.map(|l| l.scaling),
            section,
            site_count: site_count as u32,
            targets,
            train: BTreeMap::new(),
        }
    }

    /// What the module is.
    ///
    /// # Errors
    /// If the fields do not agree with each other, or the text is not a spec in its canonical spelling.
    pub fn pet(&self) -> Result<PetSpec> {
        let pet = match (&self.pet, &self.alpha, self.rank, &self.scale, self.scaling) {
            (None, Some(alpha), Some(rank), Some(scale), Some(scaling)) => {
                let lora = Lora { rank: rank as usize, alpha: alpha.to_f64(), scaling };
                lora.check()?;
                if (lora.scale() - scale.to_f64()).abs() > 1e-6 {
                    return Err(Error::new(Code::Value, format!("scale {} is not {}", scale.as_str(), lora.scale())));
                }
                PetSpec::lora(lora)
            }
            (Some(text), None, None, None, None) => PetSpec::from_canonical(text)?,
            _ => {
                return Err(Error::new(
                    Code::Value,
                    "a module has either pet, or alpha, rank, scale and scaling (if it is one LoRA)",
                ));
            }
        };
        if self.kind != pet.parts()[0].pet.kind() || self.pet.is_some() && pet.only_lora().is_some() {
            return Err(Error::new(Code::Value, format!("kind {} for a module that is {pet}", self.kind.name())));
        }
        Ok(pet)
    }
}

/// The selector of this stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SelectorEntry {
    /// What it reads; `None` for `task` and `single`.
    pub feature: Option<FeatureSpec>,
    /// Selector kind.
    pub kind: SelectorKind,
    /// Below this margin between the two best tasks, `top_k` candidates are run and compared.
    pub margin: Decimal,
    /// The selector's own LoRA (`conpet` only): an index into `modules`.
    pub module: Option<u32>,
    /// Section index of the payload; `None` for `task` and `single`.
    pub section: Option<u32>,
    /// Section index of the sufficient statistics that let a later stage extend it without replay.
    pub stats: Option<u32>,
    /// Divides the scores.
    pub temperature: Decimal,
    /// An input whose best class posterior is below this is refused.
    pub threshold: Decimal,
    /// How many candidate modules to run at most.
    pub top_k: u32,
}

/// How a task is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskKind {
    /// Answered by a label.
    Classification,
    /// Answered by text.
    Generation,
}

/// One task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskEntry {
    /// Further modules that are run beside `module` under the same head: a label's probability is the
    /// largest that any of them gives it (LAE). Left out where there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ensemble: Vec<u32>,
    /// Index into `heads`; `None` for generation, and for labels that the selector itself chooses among.
    pub head: Option<u32>,
    /// Position in `tasks`.
    pub id: u32,
    /// How it is answered.
    pub kind: TaskKind,
    /// Labels in head-row order; empty for generation.
    pub labels: Vec<String>,
    /// Longest answer to generate, in tokens (0 for classification).
    pub max_answer: u32,
    /// Index into `modules`; `None` for a head on the bare base.
    pub module: Option<u32>,
    /// Unique name.
    pub name: String,
    /// Stage that learned it (1 is the first).
    pub stage: u64,
    /// Literal text with one `{input}`, put around the user's text; `{{` and `}}` are braces.
    pub template: String,
}

impl TaskEntry {
    /// True for a task with labels and no head: the selector's own posterior of its labels is the answer.
    pub fn by_selector(&self) -> bool {
        self.kind == TaskKind::Classification && self.head.is_none()
    }
}
