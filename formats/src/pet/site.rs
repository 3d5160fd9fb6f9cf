//! Sites: the places of a base where a module acts, each named by the GGUF tensor it acts at.

use crate::model_spec::{Linear, ModelSpec, Norm};
use crate::{Code, Error, Result};
use std::fmt;

/// What a site is, whatever its layer. The seven linears come first, in the order of [`Linear::ALL`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Place {
    Q,
    K,
    V,
    Output,
    Gate,
    Up,
    Down,
    AttnNorm,
    FfnNorm,
    /// The embedding table: what enters layer 0.
    Embedding,
}

const NAMES: [&str; 10] = [
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
    "attn_norm",
    "ffn_norm",
    "token_embd",
];

impl Place {
    /// All of them, in forward order but for the norms and the embedding.
    pub const ALL: [Self; 10] = [
        Self::Q,
        Self::K,
        Self::V,
        Self::Output,
        Self::Gate,
        Self::Up,
        Self::Down,
        Self::AttnNorm,
        Self::FfnNorm,
        Self::Embedding,
    ];

    /// As GGUF calls it, e.g. `attn_q`.
    pub const fn short(self) -> &'static str {
        NAMES[self as usize]
    }

    /// The place with this short name.
    ///
    /// # Errors
    /// If there is none; the hint lists those there are.
    pub fn from_short(short: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|p| p.short() == short).ok_or_else(|| {
            Error::new(Code::Value, format!("there is no site {:?}", short.chars().take(40).collect::<String>()))
                .hint(format!("sites are {}", NAMES.join(", ")))
        })
    }

    /// The linear that it is, if it is one.
    pub fn linear(self) -> Option<Linear> {
        Linear::ALL.get(self as usize).copied()
    }

    /// Whether a base has it in its layers: some have no gate, or no norm before a sublayer.
    pub fn exists(self, spec: &ModelSpec) -> bool {
        match self {
            Self::AttnNorm => spec.has(Norm::Attn),
            Self::FfnNorm => spec.has(Norm::Ffn),
            _ => self.linear().is_none_or(|l| spec.has_linear(l)),
        }
    }

    /// `(out, in)`: of a linear its weight's; of a norm and the embedding the width twice.
    pub fn shape(self, spec: &ModelSpec) -> (usize, usize) {
        self.linear().map_or((spec.hidden, spec.hidden), |l| spec.shape(l))
    }
}

/// A set of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Places(u16);

impl Places {
    /// These.
    pub const fn of(places: &[Place]) -> Self {
        let (mut bits, mut i) = (0, 0);
        while i < places.len() {
            bits |= 1 << places[i] as u16;
            i += 1;
        }
        Self(bits)
    }

    /// All seven linears.
    pub const LINEARS: Self = Self(0x7f);
    /// The linears and the two norms of a layer.
    pub const LAYER: Self = Self(0x1ff);

    /// Whether `place` is among them.
    pub const fn has(self, place: Place) -> bool {
        self.0 >> place as u16 & 1 == 1
    }

    /// Whether all of these are among `others`.
    pub const fn within(self, others: Self) -> bool {
        self.0 & !others.0 == 0
    }

    /// True if there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The places, in order.
    pub fn iter(self) -> impl Iterator<Item = Place> {
        Place::ALL.into_iter().filter(move |p| self.has(*p))
    }

    /// Reads short names with `separator` between them.
    ///
    /// # Errors
    /// If one is no place.
    pub fn parse(text: &str, separator: char) -> Result<Self> {
        let names = text.split(separator).map(str::trim).filter(|s| !s.is_empty());
        names.map(Place::from_short).try_fold(Self::default(), |all, p| Ok(Self(all.0 | Self::of(&[p?]).0)))
    }
}

impl fmt::Display for Places {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Place::short).collect::<Vec<_>>().join("/"))
    }
}

/// One site of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Site {
    /// The layer it is in; 0 for the embedding.
    pub layer: usize,
    /// What it is there.
    pub place: Place,
}

impl Site {
    /// The site with this full name, e.g. `blk.7.attn_q.weight` or `token_embd.weight`.
    ///
    /// # Errors
    /// If the base has none of this name.
    pub fn parse(spec: &ModelSpec, name: &str) -> Result<Self> {
        let unknown = || {
            let shown: String = name.chars().take(80).collect();
            Error::new(Code::Missing, format!("the base has no site {shown:?}")).hint(format!(
                "sites are named blk.<layer>.<{}>.weight and {}.weight",
                NAMES[..9].join("|"),
                NAMES[9]
            ))
        };
        let stem = name.strip_suffix(".weight").ok_or_else(unknown)?;
        if stem == Place::Embedding.short() {
            return Ok(Self { layer: 0, place: Place::Embedding });
        }
        let (layer, short) = stem.strip_prefix("blk.").and_then(|s| s.split_once('.')).ok_or_else(unknown)?;
        let place = Place::from_short(short).map_err(|_| unknown())?;
        let site = Self { layer: layer.parse().map_err(|_| unknown())?, place };
        // Comparing spellings refuses `+7` and `07`.
        let there = place != Place::Embedding && place.exists(spec) && site.layer < spec.n_layer;
        if !there || site.to_string() != name {
            return Err(unknown());
        }
        Ok(site)
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Place::Embedding => write!(f, "token_embd.weight"),
            place => write!(f, "blk.{}.{}.weight", self.layer, place.short()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_the_linears_in_order_and_then_norms_and_embedding() {
        let spec = crate::pet::tests::spec();
        for (place, linear) in Place::ALL.into_iter().zip(Linear::ALL) {
            assert_eq!((place.short(), place.shape(&spec)), (linear.name(), spec.shape(linear)));
        }
        assert_eq!(Places::parse("ffn_down/attn_k", '/').unwrap().to_string(), "attn_k/ffn_down");
        assert_eq!(Places::LINEARS.iter().count(), 7);
        assert!(Places::of(&[Place::FfnNorm]).within(Places::LAYER) && !Places::LAYER.within(Places::LINEARS));
    }

    #[test]
    fn names_lead_to_sites_and_back() {
        let spec = crate::pet::tests::spec();
        for name in ["blk.0.attn_q.weight", "blk.3.ffn_norm.weight", "token_embd.weight"] {
            assert_eq!(Site::parse(&spec, name).unwrap().to_string(), name);
        }
        for name in ["blk.99.attn_q.weight", "blk.0.token_embd.weight", "blk.+1.attn_q.weight", "blk.0.attn_q", "x"] {
            assert_eq!(Site::parse(&spec, name).unwrap_err().code(), Code::Missing, "{name}");
        }
    }
}
