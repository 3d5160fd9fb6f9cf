//! The linear map of EA-EMR.

use crate::fit::{HEAD_BIAS, HEAD_WEIGHT, Trained};
use crate::selectors::solve::Cholesky;
use crate::services::Kept;
use conpet_formats::Result;
use rayon::prelude::*;

/// The map `a(h) = W h + b`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Map {
    pub(super) dim: usize,
    /// `W [dim, dim]`.
    pub(super) weight: Vec<f32>,
    /// `b [dim]`.
    pub(super) bias: Vec<f32>,
}

const WEIGHT: &str = "align.weight";
const BIAS: &str = "align.bias";

impl Map {
    /// The map that was kept, or the identity.
    pub(super) fn from(kept: &Kept, dim: usize) -> Self {
        let get = |n: &str| kept.get(n).map(|x| x.1.clone());
        let identity = || (0..dim * dim).map(|i| if i % (dim + 1) == 0 { 1.0 } else { 0.0 }).collect();
        Self { dim, weight: get(WEIGHT).unwrap_or_else(identity), bias: get(BIAS).unwrap_or_else(|| vec![0.0; dim]) }
    }

    pub(super) fn keep(&self, kept: &mut Kept) {
        kept.insert(WEIGHT.into(), (vec![self.dim, self.dim], self.weight.clone()));
        kept.insert(BIAS.into(), (vec![self.dim], self.bias.clone()));
    }

    /// The map's value at `h [dim]`.
    pub(super) fn of(&self, h: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(self.dim).zip(&self.bias);
        rows.map(|(w, b)| b + w.iter().zip(h).map(|(w, x)| w * x).sum::<f32>()).collect()
    }

    /// Refits this map to send `from [n, dim]` to `to [n, dim]`, staying close to this one:
    /// `min Σ ‖W h + b - z‖² + ρ ‖W - W_0‖²`, ρ = `ridge` · Σ‖h - mean‖² / dim.
    ///
    /// # Errors
    /// If the system is singular even so.
    pub(super) fn refitted(&self, from: &[f32], to: &[f32], ridge: f64) -> Result<Self> {
        let d = self.dim;
        let n = (from.len() / d) as f64;
        let mean = |v: &[f32]| -> Vec<f64> {
            (0..d).map(|i| v.iter().skip(i).step_by(d).map(|x| f64::from(*x)).sum::<f64>() / n).collect()
        };
        // The residual of this map, `z - a(h)`, centred so that the bias drops out.
        let rest: Vec<f32> = from
            .chunks_exact(d)
            .zip(to.chunks_exact(d))
            .flat_map(|(h, z)| self.of(h).into_iter().zip(z).map(|(a, z)| z - a).collect::<Vec<_>>())
            .collect();
        let (mh, mr) = (mean(from), mean(&rest));
        let centred = |v: &[f32], m: &[f64]| -> Vec<f64> {
            v.iter().enumerate().map(|(i, x)| f64::from(*x) - m[i % d]).collect()
        };
        let (h, r) = (centred(from, &mh), centred(&rest, &mr));
        // Columns, made contiguous.
        let columns: Vec<Vec<f64>> = (0..d).map(|i| h.iter().skip(i).step_by(d).copied().collect()).collect();
        let dot = |i: usize, j: usize| columns[i].iter().zip(&columns[j]).map(|(a, b)| a * b).sum::<f64>();
        let row = |i: usize| (0..=i).map(|j| dot(i, j)).collect::<Vec<_>>();
        let mut gram = (0..d).into_par_iter().map(row).collect::<Vec<_>>().concat();
        let trace: f64 = (0..d).map(|i| gram[i * (i + 1) / 2 + i]).sum();
        let rho = ridge * trace / d as f64 + 1e-9;
        (0..d).for_each(|i| gram[i * (i + 1) / 2 + i] += rho);
        let factor = Cholesky::new(gram, d)?;
        let delta: Vec<Vec<f64>> = (0..d)
            .into_par_iter()
            .map(|o| {
                let mut w: Vec<f64> = vec![0.0; d];
                for (h, r) in h.chunks_exact(d).zip(r.chunks_exact(d)) {
                    w.iter_mut().zip(h).for_each(|(w, h)| *w += r[o] * h);
                }
                factor.solve(&mut w);
                w
            })
            .collect();
        let mut out = self.clone();
        for (o, delta) in delta.iter().enumerate() {
            out.weight[o * d..(o + 1) * d].iter_mut().zip(delta).for_each(|(w, x)| *w += *x as f32);
            out.bias[o] += (mr[o] - delta.iter().zip(&mh).map(|(w, m)| w * m).sum::<f64>()) as f32;
        }
        Ok(out)
    }

    /// Folds the map into the head, which then reads features directly.
    pub(super) fn take_into_head(&self, t: &mut Trained) {
        let d = self.dim;
        let weight = t.tensors[HEAD_WEIGHT].1.clone();
        let mut folded = vec![0.0; weight.len()];
        for (row, out) in weight.chunks_exact(d).zip(folded.chunks_exact_mut(d)) {
            for (w, a) in row.iter().zip(self.weight.chunks_exact(d)) {
                out.iter_mut().zip(a).for_each(|(o, a)| *o += w * a);
            }
        }
        if let Some((_, bias)) = t.tensors.get_mut(HEAD_BIAS) {
            for (b, row) in bias.iter_mut().zip(weight.chunks_exact(d)) {
                *b += row.iter().zip(&self.bias).map(|(w, c)| w * c).sum::<f32>();
            }
        }
        t.tensors.insert(HEAD_WEIGHT.into(), (vec![weight.len() / d, d], folded));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use std::collections::BTreeMap;

    #[test]
    fn the_fit_brings_features_back_and_the_head_takes_the_map_in() {
        let (d, n) = (4, 40);
        let mut rng = Stream::new(1, "align", 0);
        let was = rng.symmetric(n * d, 1.0);
        // The features were rotated, scaled and shifted.
        let moved: Vec<f32> =
            was.chunks(d).flat_map(|h| [2.0 * h[1] + 0.5, -h[0], h[2] + 0.3 * h[3], h[3] - 1.0]).collect();
        let identity = Map::from(&Kept::new(), d);
        let off = |m: &Map| -> f32 {
            moved
                .chunks(d)
                .zip(was.chunks(d))
                .map(|(h, z)| m.of(h).iter().zip(z).map(|(a, z)| (a - z).abs()).sum::<f32>())
                .sum()
        };
        let fitted = identity.refitted(&moved, &was, 1e-6).unwrap();
        assert!(off(&fitted) < 1e-2 && off(&identity) > 10.0, "{} {}", off(&fitted), off(&identity));
        // With strong regularisation the map stays.
        let stiff = identity.refitted(&moved, &was, 1e9).unwrap();
        assert!(stiff.weight.iter().zip(&identity.weight).all(|(a, b)| (a - b).abs() < 1e-6));
        let mut t = Trained {
            tensors: BTreeMap::from([
                (HEAD_WEIGHT.to_owned(), (vec![2, d], rng.symmetric(2 * d, 1.0))),
                (HEAD_BIAS.to_owned(), (vec![2], vec![0.5, -0.5])),
            ]),
            ..Trained::default()
        };
        let logits = |t: &Trained, x: &[f32]| {
            conpet_formats::head::logits_reference(&t.tensors[HEAD_WEIGHT].1, &t.tensors[HEAD_BIAS].1, x)
        };
        let behind = logits(&t, &fitted.of(&moved[..d]));
        fitted.take_into_head(&mut t);
        let folded = logits(&t, &moved[..d]);
        assert!(behind.iter().zip(&folded).all(|(a, b)| (a - b).abs() < 1e-4));
    }
}
