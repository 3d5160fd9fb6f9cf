//! Heads: what turns hidden states into labels, linear or by choice ([`crate::choice`]).
//!
//! Payload of a linear one (section kind `head`, strict safetensors): `weight [classes, dim]` and
//! `bias [classes]`, both F32 or F16. The feature a head reads and its temperature are in the manifest.

use serde::{Deserialize, Serialize};

/// How a head scores labels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeadKind {
    /// A linear map of a pooled feature.
    #[default]
    Linear,
    /// The log-likelihood of the label's text after the prompt.
    Choice,
    /// The same, divided by the number of the label's tokens.
    ChoiceMean,
}

impl HeadKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Linear, Self::Choice, Self::ChoiceMean];

    /// The name used in manifests and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Choice => "choice",
            Self::ChoiceMean => "choice-mean",
        }
    }

    /// True for the kind that manifests leave out.
    pub fn is_linear(&self) -> bool {
        *self == Self::Linear
    }
}

/// Name of the weight tensor.
pub const WEIGHT: &str = "weight";
/// Name of the bias tensor.
pub const BIAS: &str = "bias";

/// Scalar reference: `logits[c] = bias[c] + Σ_i weight[c,i] · feature[i]`, accumulated in `f64`.
///
/// # Panics
/// If the shapes do not fit.
pub fn logits_reference(weight: &[f32], bias: &[f32], feature: &[f32]) -> Vec<f32> {
    assert_eq!(weight.len(), bias.len() * feature.len());
    bias.iter()
        .zip(weight.chunks_exact(feature.len().max(1)))
        .map(|(b, row)| {
            (f64::from(*b) + row.iter().zip(feature).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>()) as f32
        })
        .collect()
}

/// `log softmax(logits / temperature)`, in place, numerically safe; the reference for every
/// place where logits become probabilities.
pub fn log_softmax(logits: &mut [f32], temperature: f32) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|v| f64::from((v - max) / temperature).exp()).sum();
    let log_sum = sum.ln() as f32;
    logits.iter_mut().for_each(|v| *v = (*v - max) / temperature - log_sum);
}
