//! PET specs: what a module is, which tensors it holds at which sites, and the formula each kind computes.
//!
//! A kind is a spec and a scalar reference in a file of its own, listed in [`PetKind`] and [`Pet`]. A
//! module is one or more [`Part`]s ([`PetSpec`]), at most one of each kind. Where several act at one
//! linear, they do so in the order of [`PetKind`]:
//! `y = l ⊙ (Wx + s·B(Ax) + Sx) + b`, with `x` already scaled where (IA)³ scales inputs.

pub mod adapter;
pub mod bias;
pub mod ia3;
pub mod lora;
pub mod prefix;
pub mod prompt;
pub mod site;
mod size;
pub mod sparse;
mod text;

pub use adapter::Adapter;
pub use lora::Lora;
pub use prefix::Prefix;
pub use prompt::Prompt;
pub use site::{Place, Places, Site};
pub use size::Budget;
pub use sparse::Sparse;

use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};
use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal;)*) => {
        /// The kinds of PET module this release knows, in the order in which they act at a site.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum PetKind { $($(#[doc = $doc])* $variant,)* }

        impl PetKind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name used in manifests and flags.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

kinds! {
    /// Low-rank adaptation, Hu et al. 2021.
    Lora = "lora";
    /// Any number of weights anywhere, Su et al. 2023 (APET).
    Sparse = "sparse";
    /// Learned scales, Liu et al. 2022.
    Ia3 = "ia3";
    /// Learned biases, Ben Zaken et al. 2022.
    Bias = "bias";
    /// Bottleneck adapters, Houlsby et al. 2019.
    Adapter = "adapter";
    /// Learned keys and values, Li & Liang 2021.
    Prefix = "prefix";
    /// Learned input rows, Lester et al. 2021.
    Prompt = "prompt";
}

/// One kind with its hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Pet {
    Lora(Lora),
    Sparse(Sparse),
    Ia3,
    Bias,
    Adapter(Adapter),
    Prefix(Prefix),
    Prompt(Prompt),
}

/// One kind at some places of some layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// The kind.
    pub pet: Pet,
    /// Where in a layer.
    pub at: Places,
    /// Only in this many layers at the top; `None` in all that the module may act on.
    pub last: Option<usize>,
}

/// What a module is made of.
#[derive(Debug, Clone, PartialEq)]
pub struct PetSpec {
    parts: Vec<Part>,
}

impl Pet {
    /// Its kind.
    pub fn kind(&self) -> PetKind {
        match self {
            Self::Lora(_) => PetKind::Lora,
            Self::Sparse(_) => PetKind::Sparse,
            Self::Ia3 => PetKind::Ia3,
            Self::Bias => PetKind::Bias,
            Self::Adapter(_) => PetKind::Adapter,
            Self::Prefix(_) => PetKind::Prefix,
            Self::Prompt(_) => PetKind::Prompt,
        }
    }

    /// Where it acts unless told otherwise: as published.
    pub fn default_places(&self) -> Places {
        match self {
            Self::Lora(_) | Self::Sparse(_) => Places::LINEARS,
            Self::Ia3 => Places::of(&[Place::K, Place::V, Place::Down]),
            Self::Bias => Places::LAYER,
            Self::Adapter(a) => a.form.places(),
            Self::Prefix(_) => Places::of(&[Place::K, Place::V]),
            Self::Prompt(_) => Places::of(&[Place::Embedding]),
        }
    }

    /// Where it can act at all.
    fn possible_places(&self) -> Places {
        match self {
            Self::Ia3 => Places::LINEARS,
            Self::Adapter(a) if a.form != adapter::Form::Pfeiffer => adapter::Form::Houlsby.places(),
            other => other.default_places(),
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Lora(x) => x.check(),
            Self::Sparse(x) => x.check(),
            Self::Ia3 | Self::Bias => Ok(()),
            Self::Adapter(x) => x.check(),
            Self::Prefix(x) => x.check(),
            Self::Prompt(x) => x.check(),
        }
    }
}

impl Part {
    /// A kind where it acts by default.
    pub fn new(pet: Pet) -> Self {
        Self { pet, at: pet.default_places(), last: None }
    }

    /// Whether it acts at a site of a base of `n_layer` layers.
    pub fn acts(&self, n_layer: usize, site: Site) -> bool {
        self.at.has(site.place) && self.last.is_none_or(|n| site.layer + n >= n_layer)
    }

    /// The tensors it holds at a place: what follows the site's name, and the shape. A sparse delta's
    /// depend on what was chosen, and are none here.
    pub fn tensors(&self, spec: &ModelSpec, place: Place) -> Vec<(&'static str, Vec<usize>)> {
        let (out, input) = place.shape(spec);
        match self.pet {
            Pet::Lora(l) => vec![(lora::NAMES[0], vec![l.rank, input]), (lora::NAMES[1], vec![out, l.rank])],
            Pet::Sparse(_) => Vec::new(),
            Pet::Ia3 => vec![(ia3::L, vec![if ia3::scales_input(place) { input } else { out }])],
            Pet::Bias => vec![(bias::B, vec![out])],
            Pet::Adapter(a) => {
                let (h, n) = (spec.hidden, a.width);
                adapter::NAMES.into_iter().zip([vec![n, h], vec![n], vec![h, n], vec![h]]).collect()
            }
            Pet::Prefix(p) => vec![(prefix::PAIRS, vec![p.pairs, out])],
            Pet::Prompt(p) => vec![(prompt::ROWS, vec![p.rows, spec.hidden])],
        }
    }

    /// Its sites in layers `first..`, in order.
    pub fn sites(&self, spec: &ModelSpec, first: usize) -> Vec<Site> {
        let layers = (first..spec.n_layer).filter(|l| self.last.is_none_or(|n| l + n >= spec.n_layer));
        if self.at.has(Place::Embedding) {
            return vec![Site { layer: 0, place: Place::Embedding }];
        }
        layers.flat_map(|layer| self.at.iter().map(move |place| Site { layer, place })).collect()
    }

    /// Numbers it trains in layers `first..` (what a prefix's MLP has besides is not kept).
    pub fn parameters(&self, spec: &ModelSpec, first: usize) -> usize {
        if let Pet::Sparse(s) = self.pet {
            return s.n;
        }
        let count = |s: &Site| self.tensors(spec, s.place).iter().map(|t| t.1.iter().product::<usize>()).sum::<usize>();
        self.sites(spec, first).iter().map(count).sum()
    }

    fn check(&self) -> Result<()> {
        let name = self.pet.kind().name();
        let possible = self.pet.possible_places();
        // A prefix is keys and values or nothing.
        let whole = !matches!(self.pet, Pet::Prefix(_)) || self.at == possible;
        if self.at.is_empty() || !self.at.within(possible) || !whole {
            return Err(Error::new(Code::Value, format!("{name} cannot act at {}", self.at))
                .hint(format!("it acts at {possible}")));
        }
        if self.last == Some(0) || self.last.is_some() && matches!(self.pet, Pet::Prompt(_)) {
            return Err(Error::new(Code::Value, format!("{name} cannot act in the last {:?} layers", self.last)));
        }
        self.pet.check()
    }
}

impl PetSpec {
    /// Parts in the order in which they act.
    ///
    /// # Errors
    /// If there is none, a kind occurs twice, or one has a value or a place it cannot have.
    pub fn new(mut parts: Vec<Part>) -> Result<Self> {
        parts.sort_by_key(|p| p.pet.kind());
        if let Some(w) = parts.windows(2).find(|w| w[0].pet.kind() == w[1].pet.kind()) {
            return Err(Error::new(Code::Duplicate, format!("a module has {} twice", w[0].pet.kind().name())));
        }
        if parts.is_empty() {
            return Err(Error::new(Code::Value, "a module needs at least one PET kind"));
        }
        parts.iter().try_for_each(Part::check)?;
        Ok(Self { parts })
    }

    /// The one LoRA at all linears it is given.
    pub fn lora(lora: Lora) -> Self {
        Self { parts: vec![Part::new(Pet::Lora(lora))] }
    }

    /// Its parts, in the order in which they act.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The part of a kind.
    pub fn part(&self, kind: PetKind) -> Option<&Part> {
        self.parts.iter().find(|p| p.pet.kind() == kind)
    }

    /// The LoRA, if it is nothing else.
    pub fn only_lora(&self) -> Option<Lora> {
        match self.parts.as_slice() {
            [Part { pet: Pet::Lora(l), .. }] => Some(*l),
            _ => None,
        }
    }

    /// Full names of the sites in layers `first..`, sorted.
    ///
    /// # Errors
    /// If a part cannot act on what is left above the trunk, or the base has fewer layers than it names.
    pub fn sites(&self, spec: &ModelSpec, first: usize) -> Result<Vec<String>> {
        if first > 0 && self.part(PetKind::Prompt).is_some() {
            return Err(Error::new(
                Code::Unsupported,
                format!("prompt acts on the input, below the trunk of {first} layers"),
            )
            .hint("use --trunk 0, or prefix, which acts above the trunk"));
        }
        if let Some(p) = self.parts.iter().find(|p| p.last.is_some_and(|n| n > spec.n_layer - first)) {
            let (name, n) = (p.pet.kind().name(), p.last.unwrap_or(0));
            return Err(Error::new(
                Code::Value,
                format!("{name} names {n} layers, there are {} above the trunk", spec.n_layer - first),
            ));
        }
        let mut names: Vec<String> =
            self.parts.iter().flat_map(|p| p.sites(spec, first)).map(|s| s.to_string()).collect();
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// Numbers it trains in layers `first..`.
    pub fn parameters(&self, spec: &ModelSpec, first: usize) -> usize {
        self.parts.iter().map(|p| p.parameters(spec, first)).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests;
