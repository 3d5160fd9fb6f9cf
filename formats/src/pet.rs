//! PET specs: what a module is, which tensors it holds at which sites, and the formula each kind computes.
//!
//! A kind is one file here, which says all that is known of it ([`Kind`]), and one line in the list
//! below. A module is one or more [`Part`]s ([`PetSpec`]), at most one of each kind. Where several act
//! at one linear, they do so in the order of the list:
//! `y = l ⊙ (Wx + s·B(Ax) + Sx) + b`, with `x` already scaled where (IA)³ scales inputs.

pub mod adapter;
pub mod bias;
pub mod budget;
pub mod ia3;
pub mod kind;
pub mod lora;
pub mod options;
pub mod point;
pub mod prefix;
pub mod prompt;
pub mod site;
mod size;
pub mod sparse;
mod text;

pub use budget::Budget;
pub use kind::{Held, Kind};
pub use point::Point;
pub use site::{Place, Places, Site};

use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use std::ops::{Deref, DerefMut};

/// Makes [`PetKind`] and [`Pet`] of the kinds' types and the modules they are in, whose names are the
/// kinds' names.
macro_rules! kinds {
    ($($kind:ident in $name:ident;)*) => {
        $(pub use $name::$kind;)*

        /// The kinds of PET module this release knows, in the order in which they act at a site.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum PetKind {
            $(#[doc = concat!("[`mod@", stringify!($name), "`]")] $kind,)*
        }

        /// A kind with its hyper-parameters; used as its [`Kind`].
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub enum Pet {
            $(#[doc = concat!("[`mod@", stringify!($name), "`]")] $kind($kind),)*
        }

        impl PetKind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The name used in manifests and flags.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$kind => stringify!($name),)* }
            }

            /// The kind with the hyper-parameters that it has unless told otherwise.
            pub fn usual(self) -> Pet {
                match self { $(Self::$kind => Pet::$kind($kind::default()),)* }
            }
        }

        impl Pet {
            /// Its kind.
            pub const fn kind(&self) -> PetKind {
                match self { $(Self::$kind(_) => PetKind::$kind,)* }
            }
        }

        impl Deref for Pet {
            type Target = dyn Kind;

            fn deref(&self) -> &Self::Target {
                match self { $(Self::$kind(x) => x,)* }
            }
        }

        impl DerefMut for Pet {
            fn deref_mut(&mut self) -> &mut Self::Target {
                match self { $(Self::$kind(x) => x,)* }
            }
        }
    };
}

kinds! {
    Lora in lora;
    Sparse in sparse;
    Ia3 in ia3;
    Bias in bias;
    Adapter in adapter;
    Prefix in prefix;
    Prompt in prompt;
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
///
/// ```
/// use conpet_formats::pet::{Lora, PetKind, PetSpec, Places};
///
/// let pet = PetSpec::parse("lora:r=4,alpha=8+bias", Lora::default(), Places::LINEARS)?;
/// assert!(pet.part(PetKind::Bias).is_some());
/// assert_eq!(PetSpec::from_canonical(&pet.to_string())?, pet);
/// # Ok::<(), conpet_formats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PetSpec {
    parts: Vec<Part>,
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

    /// The tensors it holds at a place: see [`Kind::tensors`].
    pub fn tensors(&self, spec: &ModelSpec, place: Place) -> Vec<(&'static str, Vec<usize>)> {
        self.pet.tensors(spec, place)
    }

    /// Its sites in layers `first..`, in order.
    pub fn sites(&self, spec: &ModelSpec, first: usize) -> Vec<Site> {
        let layers = (first..spec.n_layer).filter(|l| self.last.is_none_or(|n| l + n >= spec.n_layer));
        if self.at.has(Place::Embedding) {
            return vec![Site { layer: 0, place: Place::Embedding }];
        }
        let there = |p: &Place| p.exists(spec);
        layers.flat_map(|layer| self.at.iter().filter(there).map(move |place| Site { layer, place })).collect()
    }

    /// Its parameters in layers `first..` (what a reparameterised kind is trained through is not kept).
    pub fn parameters(&self, spec: &ModelSpec, first: usize) -> usize {
        let at = |s: &Site| self.tensors(spec, s.place).iter().map(|t| t.1.iter().product::<usize>()).sum::<usize>();
        self.pet.parameters().unwrap_or_else(|| self.sites(spec, first).iter().map(at).sum())
    }

    /// Whether a base has the places where it acts. Of those where a kind acts by default, or of all linears,
    /// the ones that are there are meant; a place that was named must be there.
    fn fits(&self, spec: &ModelSpec) -> Result<()> {
        let name = self.pet.kind().name();
        if !spec.causal && self.pet.acts_on_input() {
            return Err(Error::new(Code::Unsupported, format!("{name} needs a base that reads from left to right"))
                .hint("use prefix, which acts in attention, on an encoder"));
        }
        let broad = self.at == self.pet.default_places() || self.at == Places::LINEARS;
        let missing: Vec<&str> = self.at.iter().filter(|p| !p.exists(spec)).map(Place::short).collect();
        if missing.is_empty() || broad && missing.len() < self.at.iter().count() {
            return Ok(());
        }
        Err(Error::new(
            Code::Unsupported,
            format!("{name} is to act at {}, which {} bases do not have", missing.join("/"), spec.arch),
        )
        .hint(format!(
            "sites are {}",
            Places::LAYER.iter().filter(|p| p.exists(spec)).map(Place::short).collect::<Vec<_>>().join(", ")
        )))
    }

    fn check(&self) -> Result<()> {
        let name = self.pet.kind().name();
        let possible = self.pet.possible_places();
        let whole = !self.pet.needs_every_place() || self.at == possible;
        if self.at.is_empty() || !self.at.within(possible) || !whole {
            return Err(Error::new(Code::Value, format!("{name} cannot act at {}", self.at))
                .hint(format!("it acts at {possible}")));
        }
        if self.last == Some(0) || self.last.is_some() && self.pet.acts_on_input() {
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

    /// Whether a part acts on what enters the lowest layer, so that there can be no trunk.
    pub fn acts_on_input(&self) -> bool {
        self.parts.iter().any(|p| p.pet.acts_on_input())
    }

    /// Full names of the sites in layers `first..`, sorted.
    ///
    /// # Errors
    /// If a part cannot act on what is left above the trunk, or the base has fewer layers than it names.
    pub fn sites(&self, spec: &ModelSpec, first: usize) -> Result<Vec<String>> {
        if let Some(p) = self.parts.iter().find(|p| first > 0 && p.pet.acts_on_input()) {
            return Err(Error::new(
                Code::Unsupported,
                format!("{} acts on the input, below the trunk of {first} layers", p.pet.kind().name()),
            )
            .hint("use --trunk 0, or prefix, which acts above the trunk"));
        }
        self.parts.iter().try_for_each(|p| p.fits(spec))?;
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

    /// Its parameters in layers `first..`.
    pub fn parameters(&self, spec: &ModelSpec, first: usize) -> usize {
        self.parts.iter().map(|p| p.parameters(spec, first)).sum()
    }
}

#[cfg(test)]
pub(crate) mod tests;
