//! What a selector or a head reads: token states of some layers, normalised and pooled.
//!
//! The choice is data in the bundle, never a constant in code. Shapes: token states are
//! `[tokens, hidden]`; a feature is `[parts * hidden]`, its parts in the order listed.

use crate::{Code, Error, Result};
use serde::{Deserialize, Serialize};

/// How token states of one sequence become one vector.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pool {
    /// Mean over all tokens.
    Mean,
    /// The largest value of each column over the tokens after the first, which in causal models
    /// attends to nothing but itself and mostly marks the beginning (Xiao et al. 2023, "attention sinks").
    Max,
    /// The smallest value of each column, over the same tokens.
    Min,
    /// The first token: in an encoder, the one that begins every text.
    First,
    /// The last token.
    Last,
    /// The last token that touches the last occurrence of this text, e.g. `[MASK]`.
    Marker(String),
    /// Mean over the tokens between the first `open` and the next `close`, e.g. `<h>`, `</h>`.
    Span {
        /// Text before the span.
        open: String,
        /// Text after the span.
        close: String,
    },
}

/// How the values of a column become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// Their mean.
    Mean,
    /// The largest.
    Max,
    /// The smallest.
    Min,
}

impl Reduce {
    /// True if `a` is to be taken rather than `b`; never for a mean, which takes both.
    #[inline(always)]
    pub fn prefers(self, a: f32, b: f32) -> bool {
        match self {
            Self::Mean => false,
            Self::Max => a > b,
            Self::Min => a < b,
        }
    }
}

impl Pool {
    /// Parses `mean`, `max`, `min`, `first`, `last`, `marker:TEXT`, `span:OPEN:CLOSE`.
    pub fn parse(s: &str) -> Result<Self> {
        let bad = || {
            Error::new(Code::Value, format!("unknown pooling {s:?}"))
                .hint("use mean, max, min, first, last, marker:TEXT or span:OPEN:CLOSE")
        };
        match s.split_once(':') {
            None if s == "mean" => Ok(Self::Mean),
            None if s == "max" => Ok(Self::Max),
            None if s == "min" => Ok(Self::Min),
            None if s == "first" => Ok(Self::First),
            None if s == "last" => Ok(Self::Last),
            Some(("marker", t)) if !t.is_empty() && t.len() <= 64 => Ok(Self::Marker(t.into())),
            Some(("span", rest)) => match rest.split_once(':') {
                Some((o, c)) if !o.is_empty() && !c.is_empty() && !c.contains(':') && rest.len() <= 128 => {
                    Ok(Self::Span { open: o.into(), close: c.into() })
                }
                _ => Err(bad()),
            },
            _ => Err(bad()),
        }
    }

    /// What is done with the tokens of [`Pool::tokens`].
    pub fn reduce(&self) -> Reduce {
        match self {
            Self::Max => Reduce::Max,
            Self::Min => Reduce::Min,
            _ => Reduce::Mean,
        }
    }

    /// The token range to pool over, given each token's byte range in `text`. Falls back to
    /// all tokens where the text lacks the markers, so that any input has a feature.
    ///
    /// Returns an empty range only if there are no tokens.
    pub fn tokens(&self, text: &str, offsets: &[std::ops::Range<usize>]) -> std::ops::Range<usize> {
        let n = offsets.len();
        let all = 0..n;
        let touching = |from: usize, to: usize| {
            let a = offsets.iter().position(|r| r.end > from && r.start < to);
            let b = offsets.iter().rposition(|r| r.end > from && r.start < to);
            match (a, b) {
                (Some(a), Some(b)) => Some(a..b + 1),
                _ => None,
            }
        };
        match self {
            Self::Mean => all,
            Self::Max | Self::Min => usize::from(n > 1)..n,
            Self::First => 0..n.min(1),
            Self::Last => n.saturating_sub(1)..n,
            Self::Marker(m) => match text.rfind(m.as_str()) {
                Some(at) => touching(at, at + m.len()).map_or(all, |r| r.end - 1..r.end),
                None => all,
            },
            Self::Span { open, close } => {
                let found = text.find(open.as_str()).and_then(|at| {
                    let from = at + open.len();
                    text[from..].find(close.as_str()).and_then(|len| touching(from, from + len))
                });
                found.unwrap_or(all)
            }
        }
    }
}

impl std::fmt::Display for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mean => f.write_str("mean"),
            Self::Max => f.write_str("max"),
            Self::Min => f.write_str("min"),
            Self::First => f.write_str("first"),
            Self::Last => f.write_str("last"),
            Self::Marker(t) => write!(f, "marker:{t}"),
            Self::Span { open, close } => write!(f, "span:{open}:{close}"),
        }
    }
}

impl Serialize for Pool {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Pool {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        Self::parse(&String::deserialize(d)?).map_err(serde::de::Error::custom)
    }
}

/// How each token state is normalised before pooling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StateNorm {
    /// As it is.
    None,
    /// Divided by its root mean square (no learned weight).
    Rms,
    /// The base's own output norm (with its weight); meant for the last layer.
    Output,
}

/// One part of a feature.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeaturePart {
    /// How many layers the state has passed: 0 is the embedding, `n_layer` the last.
    pub layer: u32,
    /// Pooling over tokens.
    pub pool: Pool,
}

/// What a selector or head reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeatureSpec {
    /// Normalisation of each token state, before pooling.
    pub norm: StateNorm,
    /// The parts, concatenated in this order.
    pub parts: Vec<FeaturePart>,
}

impl FeatureSpec {
    /// One part only.
    pub fn single(layer: u32, pool: Pool, norm: StateNorm) -> Self {
        Self { norm, parts: vec![FeaturePart { layer, pool }] }
    }

    /// Length of the feature for a base of width `hidden`.
    pub fn dim(&self, hidden: usize) -> usize {
        self.parts.len() * hidden
    }

    /// The deepest layer read.
    pub fn max_layer(&self) -> u32 {
        self.parts.iter().map(|p| p.layer).max().unwrap_or(0)
    }

    /// At least one part, at most 32, each within the base's depth.
    pub fn check(&self, n_layer: u32) -> Result<()> {
        if self.parts.is_empty() || self.parts.len() > 32 {
            return Err(Error::new(Code::Cap, format!("a feature has 1 to 32 parts, not {}", self.parts.len())));
        }
        match self.parts.iter().find(|p| p.layer > n_layer) {
            Some(p) => Err(Error::new(
                Code::Value,
                format!("a feature reads layer {}, but the base has {n_layer} layers", p.layer),
            )),
            None => Ok(()),
        }
    }
}

/// Scalar reference: divides by the root mean square, as [`StateNorm::Rms`]
/// (RMSNorm without weight, Zhang & Sennrich 2019; eps 1e-6).
pub fn rms_normalise(state: &mut [f32]) {
    let ms = state.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / state.len().max(1) as f64;
    let s = (1.0 / (ms + 1e-6).sqrt()) as f32;
    state.iter_mut().for_each(|v| *v *= s);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pools_find_their_tokens() {
        let text = "a <h> Bob </h> is [MASK].";
        // One token per word or mark, with the leading space inside, as byte-level BPE does.
        let mut offsets = Vec::new();
        let mut start = 0;
        for w in text.split_inclusive(' ') {
            offsets.push(start..start + w.len());
            start += w.len();
        }
        let span = Pool::parse("span:<h>:</h>").unwrap();
        assert_eq!(span.tokens(text, &offsets), 1..3, "the tokens that touch ' Bob '");
        assert_eq!(Pool::parse("marker:[MASK]").unwrap().tokens(text, &offsets), 5..6);
        assert_eq!(Pool::Mean.tokens(text, &offsets), 0..6);
        assert_eq!(Pool::Last.tokens(text, &offsets), 5..6);
        assert_eq!(Pool::parse("marker:nope").unwrap().tokens(text, &offsets), 0..6, "falls back");
        assert_eq!((Pool::First.tokens(text, &offsets), Pool::First.tokens("", &[])), (0..1, 0..0));
        assert_eq!(Pool::Last.tokens("", &[]), 0..0);
        assert_eq!((Pool::Max.tokens(text, &offsets), Pool::Min.tokens("a", &offsets[..1])), (1..6, 0..1));
        assert_eq!(Pool::parse("max").unwrap().to_string(), "max");
        for bad in ["", "median", "span:", "span:a", "marker:", "span:a:b:c"] {
            assert!(Pool::parse(bad).is_err(), "{bad}");
        }
    }
}
