//! Gaussian classes with one covariance, in the space that it whitens: their scores, the angles that novelty is
//! measured by ([`conpet_formats::novelty`]), and both for a row as if it had never been counted.

use super::fitting::Scores;
use super::solve::Cholesky;
use super::stats::Stats;
use crate::nn::matmul::{View, matmul};
use conpet_formats::Result;
use conpet_formats::novelty;
use conpet_formats::tensors::TensorsWriter;
use rayon::prelude::*;

/// Classes of equal weight with the covariance `Σ = (1 - γ) S + γ diag(S)`, `S` pooled within the classes.
#[derive(Debug)]
pub struct Gaussian {
    dim: usize,
    shrinkage: f64,
    counts: Vec<u64>,
    /// The mean of all rows `[dim]`.
    centre: Vec<f64>,
    /// `L⁻¹`, a lower triangle by rows, where `Σ = L Lᵀ`.
    root: Vec<f64>,
    /// The classes' whitened means `L⁻¹ (μ_c - μ)`, `[classes, dim]`.
    means: Vec<f64>,
}

/// Rows as they would be seen if they had not been counted.
#[derive(Debug, Clone, Default)]
pub struct LeftOut {
    /// Scores `[rows, classes]`.
    pub scores: Vec<f32>,
    /// Cosines with the classes `[rows, classes]`.
    pub cosines: Vec<f32>,
}

impl Gaussian {
    /// From statistics, shrunk by `γ`.
    ///
    /// # Errors
    /// If the covariance is singular even so.
    pub fn new(s: &Stats, shrinkage: f64) -> Result<Self> {
        // Classes of one row each have nothing within: then the spread of all rows stands for it.
        let covariance = if s.rows() > s.classes() as u64 { s.covariance_within() } else { s.covariance_of_all() };
        Self::with(s, shrunk(covariance, s.dim, shrinkage), shrinkage)
    }

    /// With another covariance, a lower triangle by rows, of which a row's own share is `1 - shrinkage`.
    ///
    /// # Errors
    /// If it is singular.
    pub fn with(s: &Stats, covariance: Vec<f64>, shrinkage: f64) -> Result<Self> {
        let dim = s.dim;
        let factor = Cholesky::new(covariance, dim)?;
        let centre = s.mean();
        let root = factor.inverse();
        let apart: Vec<f64> = s.means().iter().enumerate().map(|(i, m)| m - centre[i % dim]).collect();
        let mut out = Self { dim, shrinkage, counts: s.counts.clone(), centre, root, means: Vec::new() };
        out.means = out.whitened(&apart);
        Ok(out)
    }

    /// `L⁻¹ x` of each row of `x [n, dim]`, which is relative to the mean.
    fn whitened(&self, x: &[f64]) -> Vec<f64> {
        matmul(View::new(x, self.dim), View::new(&self.dense(), self.dim).t(), rayon::current_num_threads())
    }

    /// `L⁻¹` as `[dim, dim]`.
    fn dense(&self) -> Vec<f64> {
        let mut out = vec![0.0; self.dim * self.dim];
        for i in 0..self.dim {
            let start = i * (i + 1) / 2;
            out[i * self.dim..=i * self.dim + i].copy_from_slice(&self.root[start..=start + i]);
        }
        out
    }

    /// Squared length of each class's whitened mean.
    fn squares(&self) -> Vec<f64> {
        self.means.chunks_exact(self.dim).map(|m| m.iter().map(|v| v * v).sum()).collect()
    }

    /// The scores: `score[c] = (μ_c - μ)ᵀ Σ⁻¹ (x - ½ (μ_c + μ))`.
    pub fn scores(&self) -> Scores {
        let weight =
            matmul(View::new(&self.means, self.dim), View::new(&self.dense(), self.dim), rayon::current_num_threads());
        // Relative to the mean of all rows: what the classes share adds the same to every score, and in f32 it
        // would drown the differences.
        let bias = weight.chunks_exact(self.dim).zip(self.squares()).map(|(w, square)| {
            let at_mean: f64 = w.iter().zip(&self.centre).map(|(w, m)| w * m).sum();
            (-0.5 * square - at_mean) as f32
        });
        Scores { bias: bias.collect(), weight: weight.iter().map(|v| *v as f32).collect() }
    }

    /// Adds the space to a payload, see [`conpet_formats::novelty`].
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn write(&self, w: &mut TensorsWriter<'_>) -> Result<()> {
        let shift: Vec<f32> = self.squares().iter().map(|s| 0.5 * *s as f32).collect();
        let mean: Vec<f32> = self.centre.iter().map(|m| *m as f32).collect();
        novelty::write(w, &self.root, &mean, &shift)
    }

    /// Scores and cosines of counted rows `x [n, dim]` with their classes, each as if it had not been counted.
    ///
    /// Without a row `x = μ_c + r` of a class of `n_c`, that class's mean is `μ_c - r / (n_c - 1)`, the mean of all
    /// `N` rows moves by `-(x - μ) / (N - 1)`, and the scatter loses `r rᵀ n_c / (n_c - 1)`: a rank-one downdate, of
    /// which the formula of Sherman and Morrison gives the inverse. Only the diagonal that the covariance is shrunk
    /// towards is taken as it is.
    ///
    /// A row that is alone in its class has no such scores; they are those of a class at the mean.
    pub fn left_out(&self, x: &[f32], classes: &[usize]) -> LeftOut {
        let (d, n) = (self.dim, self.counts.len());
        let apart: Vec<f64> = x.iter().enumerate().map(|(i, v)| f64::from(*v) - self.centre[i % d]).collect();
        let x = self.whitened(&apart);
        let off: Vec<f64> = x
            .chunks_exact(d)
            .zip(classes)
            .flat_map(|(x, c)| x.iter().zip(&self.means[c * d..(c + 1) * d]).map(|(x, m)| x - m))
            .collect();
        let threads = rayon::current_num_threads();
        let means = View::new(&self.means, d).t();
        let (on_means, off_means) =
            (matmul(View::new(&x, d), means, threads), matmul(View::new(&off, d), means, threads));
        let squares = self.squares();
        let all = self.counts.iter().sum::<u64>() as f64;
        let free = all - n as f64;
        let rows: Vec<(Vec<f32>, Vec<f32>)> = (0..classes.len())
            .into_par_iter()
            .map(|i| {
                let (c, x, r) = (classes[i], &x[i * d..(i + 1) * d], &off[i * d..(i + 1) * d]);
                let of_class = (self.counts[c] as f64 - 1.0).max(0.0);
                let others = (all - 1.0).max(1.0);
                let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
                let (xx, xr, rr) = (dot(x, x), dot(x, r), dot(r, r));
                // Σ without the row is `scale (Σ - lost r rᵀ)`.
                let scale = free.max(1.0) / (free - 1.0).max(1.0);
                let lost = match of_class > 0.0 {
                    true => (1.0 - self.shrinkage) * (of_class + 1.0) / of_class / free.max(1.0),
                    false => 0.0,
                };
                let more = lost / (1.0 - lost * rr).max(1e-3);
                // The inner product of two vectors in the new space, from that in the old and those with `r`.
                let inner = |ab: f64, ar: f64, br: f64| (ab + more * ar * br) / scale;
                let moved = (all / others, 1.0 / others);
                let (x_square, x_off) = (xx * moved.0 * moved.0, xr * moved.0);
                let class = |k: usize| {
                    let (mut mm, mut mx, mut mr) = (squares[k], on_means[i * n + k], off_means[i * n + k]);
                    if k == c {
                        let back = if of_class > 0.0 { 1.0 / of_class } else { 0.0 };
                        mm += back * (back * rr - 2.0 * mr);
                        mx -= back * xr;
                        mr -= back * rr;
                    }
                    // From the mean of the other rows.
                    mm += moved.1 * (2.0 * mx + moved.1 * xx);
                    mx = moved.0 * (mx + moved.1 * xx);
                    mr += moved.1 * xr;
                    let (mm, mx) = (inner(mm, mr, mr), inner(mx, mr, x_off));
                    let length = (inner(x_square, x_off, x_off) * mm).sqrt().max(f64::MIN_POSITIVE);
                    ((mx - 0.5 * mm) as f32, (mx / length).clamp(-1.0, 1.0) as f32)
                };
                (0..n).map(class).unzip()
            })
            .collect();
        let (scores, cosines): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        LeftOut { scores: scores.concat(), cosines: cosines.concat() }
    }
}

/// `(1 - γ) S + γ diag(S)`, for a lower triangle by rows.
pub(super) fn shrunk(mut cov: Vec<f64>, d: usize, shrinkage: f64) -> Vec<f64> {
    let diagonal = |i: usize| i * (i + 1) / 2 + i;
    // States have a few directions of huge variance. A target that keeps each direction's own variance does not
    // drown the others, as a multiple of the identity would.
    let floor = 1e-6 * (0..d).map(|i| cov[diagonal(i)]).sum::<f64>() / d as f64 + 1e-12;
    let keep: Vec<f64> = (0..d).map(|i| cov[diagonal(i)] + floor).collect();
    cov.iter_mut().for_each(|v| *v *= 1.0 - shrinkage);
    keep.iter().enumerate().for_each(|(i, v)| cov[diagonal(i)] = *v);
    cov
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    fn rows(dim: usize) -> (Vec<f32>, Vec<usize>) {
        let mut rng = Stream::new(3, "t", 0);
        let classes: Vec<usize> = (0..48).map(|i| [0, 1, 1, 2][i % 4]).collect();
        let x = classes.iter().flat_map(|c| {
            let noise = rng.symmetric(dim, 1.0);
            (0..dim).map(move |j| noise[j] + noise[0] + 1.5 * ((c * 7 + j) as f32).sin() + 10.0).collect::<Vec<_>>()
        });
        (x.collect(), classes)
    }

    #[test]
    fn a_row_left_out_is_a_row_never_counted() {
        let dim = 5;
        let (x, classes) = rows(dim);
        let stats = |skip: Option<usize>| {
            let mut s = Stats::new(dim);
            s.grow(3);
            for (i, c) in classes.iter().enumerate().filter(|(i, _)| Some(*i) != skip) {
                s.add(&x[i * dim..(i + 1) * dim], &[*c]);
            }
            s
        };
        // Scores, relative to the first class as they are relative to each stage's mean, and cosines.
        let seen_by = |g: &Gaussian, row: &[f32]| -> Vec<f64> {
            let scores = g.scores().of(row);
            let apart: Vec<f64> = row.iter().zip(&g.centre).map(|(v, m)| f64::from(*v) - m).collect();
            let w = g.whitened(&apart);
            let length = |v: &[f64]| v.iter().map(|v| v * v).sum::<f64>().sqrt();
            let cosine = |m: &[f64]| w.iter().zip(m).map(|(x, m)| x * m).sum::<f64>() / (length(&w) * length(m));
            let scores = scores.iter().map(|s| f64::from(s - scores[0])).collect::<Vec<_>>();
            scores.into_iter().chain(g.means.chunks_exact(dim).map(cosine)).collect()
        };
        for shrinkage in [0.0, 0.5] {
            let all = Gaussian::new(&stats(None), shrinkage).unwrap();
            let got = all.left_out(&x, &classes);
            let (mut wrong, mut moved) = (0.0, 0.0);
            for i in 0..classes.len() {
                let row = &x[i * dim..(i + 1) * dim];
                let want = seen_by(&Gaussian::new(&stats(Some(i)), shrinkage).unwrap(), row);
                let (scores, cosines) = (&got.scores[3 * i..3 * i + 3], &got.cosines[3 * i..3 * i + 3]);
                let mine = scores.iter().map(|s| f64::from(s - scores[0])).chain(cosines.iter().map(|c| f64::from(*c)));
                for ((mine, want), counted) in mine.zip(&want).zip(seen_by(&all, row)) {
                    wrong += (mine - want).abs();
                    moved += (counted - want).abs();
                }
            }
            // Exact without shrinkage; with it the diagonal is taken as it is.
            let part = if shrinkage > 0.0 { 0.35 } else { 1e-3 };
            assert!(wrong < part * moved, "γ {shrinkage}: off by {wrong} of {moved}");
        }
    }

    #[test]
    fn one_row_a_class_is_enough_to_score() {
        let (x, _) = rows(4);
        let mut s = Stats::new(4);
        s.grow(3);
        s.add(&x[..12], &[0, 1, 2]);
        let g = Gaussian::new(&s, 0.95).unwrap();
        assert!(g.root.iter().all(|v| v.abs() < 6e4), "it fits into half precision: {:?}", g.root);
        let scores = g.scores();
        for (c, x) in x[..12].chunks_exact(4).enumerate() {
            let got = scores.of(x);
            assert!((0..3).all(|k| k == c || got[k] < got[c]), "{c}: {got:?}");
        }
    }

    #[test]
    fn counted_rows_look_better_than_they_would_uncounted() {
        let (x, classes) = rows(20);
        let mut s = Stats::new(20);
        s.grow(3);
        s.add(&x, &classes);
        let g = Gaussian::new(&s, 0.1).unwrap();
        let (seen, unseen) = (g.scores(), g.left_out(&x, &classes));
        let margin = |s: &[f32], c: usize| s[c] - (0..3).filter(|k| *k != c).map(|k| s[k]).fold(f32::MIN, f32::max);
        let sum = |f: &dyn Fn(usize) -> f32| (0..classes.len()).map(f).sum::<f32>();
        let with = sum(&|i| margin(&seen.of(&x[20 * i..20 * i + 20]), classes[i]));
        let without = sum(&|i| margin(&unseen.scores[3 * i..3 * i + 3], classes[i]));
        assert!(without < 0.9 * with, "{without} {with}");
    }
}
