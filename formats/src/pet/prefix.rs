//! Prefix tuning (Li & Liang 2021, arXiv 2101.00190): n learned key/value pairs before the sequence.
//!
//! Attention at a layer becomes `softmax([q·K_p ; q·K] / √d) [V_p ; V]`: every token sees the learned
//! pairs, whatever its position and whatever window the layer has. The learned keys have no position:
//! they are not rotated (queries and the sequence's own keys are, from position 0 as without). A
//! module holds `K_p [n, kv_dim]` in `<attn_k site>.prefix` and `V_p` in `<attn_v site>.prefix`. In training the
//! pairs of all layers are the output of one MLP (`mid` > 0); only its output is kept.

use super::kind::Kind;
use super::options::Options;
use super::point::Point;
use super::site::{Place, Places};
use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};

/// What follows a site's name in the names of `K_p` and `V_p`.
pub const PAIRS: &str = "prefix";

/// A prefix's hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Pairs n of each layer, 1..=4096.
    pub pairs: usize,
    /// Width of the MLP they are trained through; 0 trains them directly.
    pub mid: usize,
}

impl Default for Prefix {
    fn default() -> Self {
        Self { pairs: 16, mid: 0 }
    }
}

impl Kind for Prefix {
    fn about(&self) -> &'static str {
        "Learned keys and values, Li & Liang 2021."
    }

    fn syntax(&self) -> &'static str {
        "n=,mid="
    }

    fn read(&mut self, options: &mut Options<'_>) -> Result<()> {
        options.number("n", &mut self.pairs)?;
        options.number("mid", &mut self.mid)
    }

    fn options(&self) -> Vec<String> {
        let mid = (self.mid > 0).then(|| format!("mid={}", self.mid));
        std::iter::once(format!("n={}", self.pairs)).chain(mid).collect()
    }

    fn check(&self) -> Result<()> {
        if self.pairs == 0 || self.pairs > 4096 || self.mid > 65_536 {
            return Err(Error::new(
                Code::Value,
                format!("a prefix of {} pairs and mid {} is not in 1..=4096 and 0..=65536", self.pairs, self.mid),
            ));
        }
        Ok(())
    }

    fn default_places(&self) -> Places {
        Places::of(&[Place::K, Place::V])
    }

    /// Keys without values, or values without keys, are nothing.
    fn needs_every_place(&self) -> bool {
        true
    }

    /// Nowhere: attention reads the pairs.
    fn acts_at(&self, _point: Point) -> Option<Place> {
        None
    }

    fn tensors(&self, spec: &ModelSpec, place: Place) -> Vec<(&'static str, Vec<usize>)> {
        vec![(PAIRS, vec![self.pairs, place.shape(spec).0])]
    }

    fn resize(&mut self, n: usize) -> bool {
        self.pairs = n;
        true
    }

    fn products(&self) -> &'static [&'static str] {
        &[PAIRS]
    }

    fn is_reparameterised(&self) -> bool {
        self.mid > 0
    }

    fn blends(&self) -> std::result::Result<(), &'static str> {
        Err("puts learned pairs before the sequence, which attention weighs itself: what they add to it is no sum \
             that a weight could multiply")
    }
}

/// Scalar reference: one head's attention of one query, with the learned pairs before the others;
/// keys and values `[.., dim]`, accumulated in `f64`. Products are multiplied by `scale`, and bent by `cap`
/// where the base does so.
///
/// # Panics
/// If there is no key at all or the shapes do not fit.
pub fn attend_reference(
    q: &[f32],
    [learned_k, learned_v]: [&[f32]; 2],
    [k, v]: [&[f32]; 2],
    (scale, cap): (f32, Option<f32>),
) -> Vec<f32> {
    assert!(learned_k.len() == learned_v.len() && k.len() == v.len() && !(learned_k.is_empty() && k.is_empty()));
    let d = q.len();
    let product = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let bent = |s: f64| cap.map_or(s, |c| f64::from(c) * (s / f64::from(c)).tanh());
    let score = |k: &[f32]| bent(product(k) * f64::from(scale));
    let scores: Vec<f64> = learned_k.chunks_exact(d).chain(k.chunks_exact(d)).map(score).collect();
    let max = scores.iter().fold(f64::NEG_INFINITY, |m, s| m.max(*s));
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
    let total: f64 = weights.iter().sum();
    let values = learned_v.chunks_exact(d).chain(v.chunks_exact(d)).zip(&weights);
    let sum = values.fold(vec![0f64; d], |mut sum, (v, w)| {
        sum.iter_mut().zip(v).for_each(|(s, v)| *s += w * f64::from(*v));
        sum
    });
    sum.into_iter().map(|s| (s / total) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_average_learned_and_own_values() {
        let q = [0.0, 0.0];
        let out = attend_reference(
            &q,
            [&[1.0, 2.0], &[4.0, 0.0]],
            [&[3.0, 1.0, 0.0, 5.0], &[1.0, 3.0, 1.0, 6.0]],
            (1.0, None),
        );
        assert_eq!(out, [2.0, 3.0]);
    }
}
