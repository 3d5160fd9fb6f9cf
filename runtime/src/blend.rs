//! What is in force for a sequence: modules, each with a weight.
//!
//! Usually that is nothing or one module at weight 1, which cost what they always did. Several may act
//! together, with weights of either sign (subtracting a skill), the same everywhere or by layer; and
//! weights that depend on the site, the token or what flows there come from a [`Weigh`], which is
//! asked while the layers run.
//!
//! Where several modules act at one point, each of a kind reads what flowed there before any of that
//! kind acted, and what they change is summed: `y = (1 + Σ wᵢ lᵢ) ⊙ (Wx + Σ wᵢ sᵢ Bᵢ Aᵢ x + Σ wᵢ Sᵢ x) + Σ wᵢ bᵢ`.
//! Learned keys and values, which attention normalises together with the sequence's own, have no such
//! sum: only one module of a blend may have them, at weight 1 throughout.

use crate::error::{Code, Error, Result};
use crate::module::{Learned, Module};
use conpet_formats::pet::{PetKind, Site};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// Weights that differ by site, by token, or with what flows there.
pub trait Weigh: Debug + Send + Sync {
    /// The weight of each module at `site` for each token of one sequence, `out [tokens, modules]`.
    ///
    /// `first` is the position of the first of these tokens in the sequence. `x [tokens, width]` is
    /// what the linear or sublayer at the site reads, or, where a point has no input of its own, what
    /// flows past it. A module that acts at several points of a site is weighed at each.
    fn weigh(&self, site: Site, first: usize, x: &[f32], out: &mut [f32]);
}

/// Modules and their weights.
#[derive(Debug, Clone, Default)]
pub struct Blend {
    modules: Vec<Arc<Module>>,
    weights: Weights,
}

#[derive(Debug, Clone)]
enum Weights {
    /// Of each module, in all layers.
    Constant(Vec<f32>),
    /// Of each module in ranges of layers; nothing is in force in a layer of none.
    ByLayer(Vec<(Range<usize>, Vec<f32>)>),
    Weighed(Arc<dyn Weigh>),
}

impl Default for Weights {
    fn default() -> Self {
        Self::Constant(Vec::new())
    }
}

impl From<Arc<Module>> for Blend {
    /// One module at weight 1.
    fn from(module: Arc<Module>) -> Self {
        Self { modules: vec![module], weights: Weights::Constant(vec![1.0]) }
    }
}

impl From<Option<Arc<Module>>> for Blend {
    /// One module at weight 1, or the bare base.
    fn from(module: Option<Arc<Module>>) -> Self {
        module.map_or_else(Self::none, Self::from)
    }
}

impl Blend {
    /// The bare base.
    pub const fn none() -> Self {
        Self { modules: Vec::new(), weights: Weights::Constant(Vec::new()) }
    }

    /// Modules at the same weights everywhere. A module at weight 0 is left out.
    ///
    /// # Errors
    /// If a weight is not finite, a module occurs twice, or a module's kind cannot be weighed so.
    pub fn new(parts: impl IntoIterator<Item = (Arc<Module>, f32)>) -> Result<Self> {
        let (modules, weights): (Vec<_>, Vec<f32>) = parts.into_iter().filter(|(_, w)| *w != 0.0).unzip();
        Self { modules, weights: Weights::Constant(weights) }.checked()
    }

    /// Modules whose weights differ by layer: in each range of layers one for each module. Nothing is in
    /// force in a layer that no range holds.
    ///
    /// # Errors
    /// As [`Blend::new`]; also if a range has another number of weights, or two share a layer.
    pub fn by_layer(modules: Vec<Arc<Module>>, weights: Vec<(Range<usize>, Vec<f32>)>) -> Result<Self> {
        let wrong = |what: String| Err(Error::new(Code::Value, what).in_section("blend"));
        for (i, (range, w)) in weights.iter().enumerate() {
            if w.len() != modules.len() {
                return wrong(format!("{} weights for {} modules in layers {range:?}", w.len(), modules.len()));
            }
            if let Some((other, _)) = weights[..i].iter().find(|(o, _)| o.start < range.end && range.start < o.end) {
                return wrong(format!("layers {range:?} and {other:?} overlap"));
            }
        }
        Self { modules, weights: Weights::ByLayer(weights) }.checked()
    }

    /// Modules whose weights `by` gives while the layers run.
    ///
    /// # Errors
    /// As [`Blend::new`].
    pub fn weighed(modules: Vec<Arc<Module>>, by: Arc<dyn Weigh>) -> Result<Self> {
        Self { modules, weights: Weights::Weighed(by) }.checked()
    }

    /// The modules, in the order of their weights.
    pub fn modules(&self) -> &[Arc<Module>] {
        &self.modules
    }

    /// True for the bare base.
    pub fn is_none(&self) -> bool {
        self.modules.is_empty()
    }

    /// Whether both are the same modules at the same weights.
    pub fn same(&self, other: &Self) -> bool {
        self.modules.len() == other.modules.len()
            && self.modules.iter().zip(&other.modules).all(|(a, b)| a.id() == b.id())
            && match (&self.weights, &other.weights) {
                (Weights::Constant(a), Weights::Constant(b)) => a == b,
                (Weights::ByLayer(a), Weights::ByLayer(b)) => a == b,
                (Weights::Weighed(a), Weights::Weighed(b)) => Arc::ptr_eq(a, b),
                _ => false,
            }
    }

    /// The weights in a layer, one for each module and none where nothing is in force; `None` if they
    /// must be asked for.
    pub(crate) fn at(&self, layer: usize) -> Option<&[f32]> {
        match &self.weights {
            Weights::Constant(w) => Some(w),
            Weights::ByLayer(all) => Some(all.iter().find(|(r, _)| r.contains(&layer)).map_or(&[], |(_, w)| w)),
            Weights::Weighed(_) => None,
        }
    }

    /// Who gives the weights, where they must be asked for.
    pub(crate) fn weigh(&self) -> Option<&dyn Weigh> {
        match &self.weights {
            Weights::Weighed(by) => Some(&**by),
            _ => None,
        }
    }

    /// # Panics
    /// If a module acts below layer `depth`, where no blend is in force.
    pub(crate) fn assert_above(&self, depth: usize) {
        let low = self.modules.iter().map(|m| m.first_layer()).find(|l| *l < depth);
        assert!(low.is_none(), "a module acts on layer {low:?}, below the trunk of {depth} layers");
    }

    /// Learned keys and values of a layer.
    pub(crate) fn learned(&self, layer: usize) -> Option<Learned<'_>> {
        self.modules.iter().find_map(|m| m.learned(layer))
    }

    /// Positions that learned rows take before the sequence's first token.
    pub(crate) fn positions(&self) -> usize {
        self.modules.iter().map(|m| m.positions()).max().unwrap_or(0)
    }

    fn checked(self) -> Result<Self> {
        let wrong = |code, what: String| Err(Error::new(code, what).in_section("blend"));
        let given = match &self.weights {
            Weights::Constant(w) => w.as_slice(),
            _ => &[],
        };
        let by_layer = match &self.weights {
            Weights::ByLayer(all) => all.as_slice(),
            _ => &[],
        };
        if let Some(w) = given.iter().chain(by_layer.iter().flat_map(|(_, w)| w)).find(|w| !w.is_finite()) {
            return wrong(Code::NotFinite, format!("a module has the weight {w}"));
        }
        for (i, m) in self.modules.iter().enumerate() {
            if self.modules[..i].iter().any(|o| o.id() == m.id()) {
                return wrong(Code::Duplicate, "a module occurs twice".into());
            }
        }
        let mut whole = None;
        for (i, m) in self.modules.iter().enumerate() {
            let Some((kind, why)) = indivisible(m) else { continue };
            let full = matches!(&self.weights, Weights::Constant(w) if w[i] == 1.0);
            // Learned rows have passed the layers under their own module alone, before any blend is known.
            let alone = !m.pet().acts_on_input() || self.modules.len() == 1;
            if !full || !alone || whole.replace(kind).is_some() {
                let what = format!("{} {why}", kind.name());
                return Err(Error::new(Code::Unsupported, what).in_section("blend").hint(
                    "give its module the weight 1; beside a prefix, other modules may act, beside a prompt none",
                ));
            }
        }
        Ok(self)
    }
}

/// The first kind of a module that cannot be weighed, and why.
fn indivisible(m: &Module) -> Option<(PetKind, &'static str)> {
    m.pet().parts().iter().find_map(|p| Some((p.pet.kind(), p.pet.blends().err()?)))
}
