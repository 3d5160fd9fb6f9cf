//! What training asks of a PET kind, beside what the formats know of it.

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

/// The list of kinds: each is its spec, which its file makes trainable.
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
    /// Chooses what of it is data rather than trained: a sparse delta's positions.
    ///
    /// # Errors
    /// If what the spec asks for is not to be had.
    fn choose(&self, _choice: &Choice<'_>) -> Result<Indices> {
        Ok(Indices::new())
    }

    /// What it trains at a site: what follows the site's name, and the shape.
    fn trained(&self, beginning: &Beginning<'_>, site: Site) -> Vec<(&'static str, Vec<usize>)> {
        self.tensors(&beginning.base.spec, site.place)
    }

    /// Where a tensor starts: at zero, unless that would be no change that can be learned.
    fn start(&self, _base: &Base, _name: &str, shape: &[usize], _rng: Stream) -> Vec<f32> {
        vec![0.0; shape.iter().product()]
    }

    /// The parameters that it is trained through in place of its own tensors, if it is.
    fn through(&self, _beginning: &Beginning<'_>) -> Option<Vec<Fresh>> {
        None
    }

    /// Replaces the parameters of [`Trainable::through`] by the tensors that they make.
    ///
    /// # Errors
    /// If these cannot be computed.
    fn make(
        &self,
        _spec: &ModelSpec,
        _sites: &[Site],
        _tensors: &mut BTreeMap<String, Tensor>,
    ) -> candle_core::Result<()> {
        Ok(())
    }

    /// Takes its tensors of a layer, and enters what they do there into the layer's plan.
    fn enter(&self, plan: &mut Plan, layout: &mut Layout<'_>);
}

/// Positions of a sparse delta, by full tensor name.
pub type Indices = BTreeMap<String, Arc<Vec<i32>>>;

/// Sums what the Fisher rule needs of some sites, into a probe.
pub type Fisher<'a> = &'a dyn Fn(&[Site], &Arc<Probe>) -> Result<()>;

/// What positions are chosen among and by.
pub(super) struct Choice<'a> {
    pub(super) base: &'a Base,
    /// The kind's own.
    pub(super) sites: &'a [Site],
    /// Seed and name of the random stream.
    pub(super) named: (u64, &'a str),
    pub(super) fisher: Fisher<'a>,
}

/// What a kind's parameters are made for.
pub(super) struct Beginning<'a> {
    pub(super) base: &'a Base,
    /// The kind's own.
    pub(super) sites: &'a [Site],
    pub(super) indices: &'a Indices,
    /// Seed and name of the random streams.
    pub(super) named: (u64, &'a str),
    /// Whether training goes on from a tensor of this name.
    pub(super) known: &'a dyn Fn(&str) -> bool,
}

impl Beginning<'_> {
    /// The random stream of something.
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
