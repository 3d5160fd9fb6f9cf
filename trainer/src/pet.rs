//! A module in training: its initial parameters, what they do in the layers, and which tensors are kept.
//!
//! A kind is one file here and one line in `kind::of`: its tensors' initial values, their place in a layer's
//! vector, what it does at the points of a layer, and the gradient of that. The trained parameters have the
//! names and shapes of the kept tensors, except for a kind that is trained through other parameters: a prefix
//! with an MLP.

pub mod act;
mod adapter;
mod bias;
pub mod dropout;
pub mod group;
mod ia3;
pub mod kind;
mod lora;
pub mod plan;
pub mod point;
mod prefix;
pub mod probe;
pub(crate) mod prompt;
pub mod sparse;

pub use dropout::Dropout;
pub use group::Group;
pub use kind::{Fresh, Indices};
pub use plan::Plan;
pub use point::Point;

use candle_core::Tensor;
use conpet_formats::Result;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Part, PetSpec, Site};
use conpet_runtime::base::Base;
use kind::{Beginning, Choice, Fisher};
use plan::Layout;
use probe::Probe;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A module in training.
#[derive(Debug, Clone)]
pub struct TrainedModule {
    /// Its spec.
    pub pet: PetSpec,
    /// Its tensors by full name; empty if nothing is in force.
    pub tensors: BTreeMap<String, Tensor>,
    /// Positions of a sparse delta, by full name.
    pub indices: Indices,
    /// Records gradients of frozen weights.
    pub probe: Option<Arc<Probe>>,
}

impl TrainedModule {
    /// A module without tensors, which changes nothing.
    pub fn none(pet: PetSpec) -> Self {
        Self { pet, tensors: BTreeMap::new(), indices: Indices::new(), probe: None }
    }

    /// The parts that act in a layer, and the vector of their parameters; `None` if nothing acts there.
    ///
    /// # Errors
    /// If its tensors cannot be joined.
    pub fn layer(&self, spec: &ModelSpec, layer: usize) -> candle_core::Result<Option<(Plan, Tensor)>> {
        let (mut plan, mut layout) = (Plan::default(), Layout::new(spec, layer, &self.tensors, &self.indices));
        self.pet.parts().iter().for_each(|p| kind::of(&p.pet).enter(&mut plan, &mut layout));
        if let Some(p) = &self.probe {
            plan.add(p.layer(&mut layout));
        }
        plan.finish(layout)
    }

    /// Learned rows before every sequence, `[n, hidden]`.
    pub fn prompt(&self) -> Option<&Tensor> {
        prompt::rows(&self.tensors)
    }
}

/// The sites at which a part acts.
fn own(part: &Part, spec: &ModelSpec, sites: &[Site]) -> Vec<Site> {
    sites.iter().copied().filter(|s| part.acts(spec.n_layer, *s)).collect()
}

/// Chooses the positions that a module's spec asks for; `named` is the seed and name of the random stream.
///
/// # Errors
/// If there are fewer weights than positions, or `fisher` fails.
pub fn choose(base: &Base, pet: &PetSpec, sites: &[Site], named: (u64, &str), fisher: Fisher<'_>) -> Result<Indices> {
    let mut out = Indices::new();
    for part in pet.parts() {
        let sites = &own(part, &base.spec, sites);
        out.extend(kind::of(&part.pet).choose(&Choice { base, sites, named, fisher })?);
    }
    Ok(out)
}

/// The parameters before training. Every kind but prefix and prompt starts without any effect.
///
/// `named` is the seed and name of the random streams; `known` says which tensors training continues from instead.
pub fn fresh(
    base: &Base,
    pet: &PetSpec,
    sites: &[Site],
    indices: &Indices,
    named: (u64, &str),
    known: impl Fn(&str) -> bool,
) -> Vec<Fresh> {
    let mut out = Vec::new();
    for part in pet.parts() {
        let (kind, sites) = (kind::of(&part.pet), &own(part, &base.spec, sites));
        let beginning = Beginning { base, sites, indices, named, known: &known };
        if let Some(through) = kind.through(&beginning) {
            out.extend(through);
            continue;
        }
        for site in sites {
            for (suffix, shape) in kind.trained(&beginning, *site) {
                let values = kind.start(base, suffix, &shape, beginning.stream(&site.to_string()));
                out.push(Fresh { name: format!("{site}.{suffix}"), shape, values });
            }
        }
    }
    out
}

/// The tensors that the layers use and that are kept: the parameters themselves, or the tensors computed from
/// them if a kind is trained through others.
///
/// # Errors
/// If they cannot be computed.
pub fn in_force(
    pet: &PetSpec,
    spec: &ModelSpec,
    sites: &[Site],
    mut parameters: BTreeMap<String, Tensor>,
) -> candle_core::Result<BTreeMap<String, Tensor>> {
    for part in pet.parts() {
        kind::of(&part.pet).make(spec, &own(part, spec, sites), &mut parameters)?;
    }
    Ok(parameters)
}

/// Whether a trained tensor belongs to the module, by its name; the others belong to the head or the recipe.
pub fn is_module(name: &str) -> bool {
    name.starts_with("blk.") || name.starts_with("token_embd.")
}
