//! What training needs from a PET kind, beyond what `conpet-formats` defines.

use super::plan::{Layout, Plan};
use super::probe::Probe;
use crate::rng::Stream;
use candle_core::Tensor;
use conpet_formats::Result;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Kind, Pet, Site};
use conpet_runtime::base::Base;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The list of kinds: each kind's spec, for which its file implements [`Trainable`].
pub(super) fn of(pet: &Pet) -> &dyn Trainable {
    match pet {
        Pet::Lora(x) => x,
        Pet::Sparse(x) => x,
        Pet::Ia3(x) => x,
        Pet::Bias(x) => x,
        Pet::Adapter(x) => x,
        Pet::Prefix(x) => x,
        Pet::Prompt(x) => x,
    }
}

/// A kind in training.
pub(super) trait Trainable: Kind {
    /// Chooses the part of it that is not trained: a sparse delta's positions.
    ///
    /// # Errors
    /// If the spec asks for what the base does not have.
    fn choose(&self, _choice: &Choice<'_>) -> Result<Indices> {
        Ok(Indices::new())
    }

    /// The tensors it trains at a site: the suffix after the site's name, and the shape.
    fn trained(&self, beginning: &Beginning<'_>, site: Site) -> Vec<(&'static str, Vec<usize>)> {
        self.tensors(&beginning.base.spec, site.place)
    }

    /// A tensor's initial values: zero, unless zero would block the gradient.
    fn start(&self, _base: &Base, _name: &str, shape: &[usize], _rng: Stream) -> Vec<f32> {
        vec![0.0; shape.iter().product()]
    }

    /// The parameters that it is trained through instead of its own tensors, if any.
    fn through(&self, _beginning: &Beginning<'_>) -> Option<Vec<Fresh>> {
        None
    }

    /// Replaces the parameters of [`Trainable::through`] by the tensors computed from them.
    ///
    /// # Errors
    /// If the tensors cannot be computed.
    fn make(
        &self,
        _spec: &ModelSpec,
        _sites: &[Site],
        _tensors: &mut BTreeMap<String, Tensor>,
    ) -> candle_core::Result<()> {
        Ok(())
    }

    /// Lays its tensors of a layer into the layer's vector, and adds what they do to the layer's plan.
    fn enter(&self, plan: &mut Plan, layout: &mut Layout<'_>);
}

/// Positions of a sparse delta, by full tensor name.
pub type Indices = BTreeMap<String, Arc<Vec<i32>>>;

/// Computes the Fisher information of some sites into a probe.
pub type Fisher<'a> = &'a dyn Fn(&[Site], &Arc<Probe>) -> Result<()>;

/// What the choice of positions depends on.
pub(super) struct Choice<'a> {
    pub(super) base: &'a Base,
    /// Sites of the kind.
    pub(super) sites: &'a [Site],
    /// Seed and name of the random stream.
    pub(super) named: (u64, &'a str),
    pub(super) fisher: Fisher<'a>,
}

/// What a kind's initial parameters depend on.
pub(super) struct Beginning<'a> {
    pub(super) base: &'a Base,
    /// Sites of the kind.
    pub(super) sites: &'a [Site],
    pub(super) indices: &'a Indices,
    /// Seed and name of the random streams.
    pub(super) named: (u64, &'a str),
    /// Whether training continues from an existing tensor of this name.
    pub(super) known: &'a dyn Fn(&str) -> bool,
}

impl Beginning<'_> {
    /// The random stream for one purpose.
    pub(super) fn stream(&self, what: &str) -> Stream {
        let (seed, name) = self.named;
        Stream::new(seed, &format!("{name}/init/{what}"), 0)
    }
}

/// A parameter before training.
#[derive(Debug, Clone, PartialEq)]
pub struct Fresh {
    /// Full name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Values.
    pub values: Vec<f32>,
}
