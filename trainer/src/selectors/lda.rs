//! Linear discriminant analysis: Gaussian classes with one shared covariance (Fisher 1936).
//!
//! `score[c] = (μ_c - μ)ᵀ Σ⁻¹ (x - ½ (μ_c + μ))` with the mean `μ` of all rows, equal priors (which is
//! `μ_cᵀ Σ⁻¹ x - ½ μ_cᵀ Σ⁻¹ μ_c` less what all classes share); `Σ = (1 - γ) S + γ diag(S)` with the
//! pooled within-class covariance `S` (shrinkage towards "target D" of Schäfer & Strimmer 2005, γ given).

use super::solve::Cholesky;
use super::{Scores, Stats};
use conpet_formats::Result;
use rayon::prelude::*;

/// Fits the scores.
///
/// # Errors
/// If the covariance is singular even after shrinking.
pub fn fit(s: &Stats, shrinkage: f64) -> Result<Scores> {
    let d = s.dim;
    let means = s.means();
    let free = (s.rows() as f64 - s.classes() as f64).max(1.0);
    let mut cov = s.moment.clone();
    let mut at = 0;
    for i in 0..d {
        for c in 0..s.classes() {
            let (m, n) = (&means[c * d..(c + 1) * d], s.counts[c] as f64);
            let mi = n * m[i];
            cov[at..=at + i].iter_mut().zip(m).for_each(|(v, mj)| *v -= mi * mj);
        }
        at += i + 1;
    }
    cov.iter_mut().for_each(|v| *v /= free);
    let diagonal = |i: usize| i * (i + 1) / 2 + i;
    // States have a few directions of huge variance: a target that keeps each direction's own
    // variance does not drown the others, as a multiple of the identity would.
    let floor = 1e-6 * (0..d).map(|i| cov[diagonal(i)]).sum::<f64>() / d as f64 + 1e-12;
    let keep: Vec<f64> = (0..d).map(|i| cov[diagonal(i)] + floor).collect();
    cov.iter_mut().for_each(|v| *v *= 1.0 - shrinkage);
    keep.iter().enumerate().for_each(|(i, v)| cov[diagonal(i)] = *v);
    let factor = Cholesky::new(cov, d)?;
    // Seen from the mean of all rows: what the classes share adds the same to every score, and in
    // f32 it would drown what they do not.
    let n = s.rows().max(1) as f64;
    let centre: Vec<f64> = (0..d).map(|i| s.sums.iter().skip(i).step_by(d).sum::<f64>() / n).collect();
    let rows: Vec<(Vec<f32>, f32)> = means
        .par_chunks_exact(d)
        .map(|m| {
            let mut w: Vec<f64> = m.iter().zip(&centre).map(|(m, c)| m - c).collect();
            factor.solve(&mut w);
            let b = -0.5 * w.iter().zip(m.iter().zip(&centre)).map(|(w, (m, c))| w * (m + c)).sum::<f64>();
            (w.iter().map(|v| *v as f32).collect(), b as f32)
        })
        .collect();
    Ok(Scores { weight: rows.iter().flat_map(|r| r.0.clone()).collect(), bias: rows.iter().map(|r| r.1).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn separates_gaussians_along_the_right_direction() {
        // Two classes differ in x1 only; x0 has large noise that is correlated with x1's. Both are far
        // from the origin, which must not show in the scores.
        let mut rng = Stream::new(1, "t", 0);
        let mut s = Stats::new(2);
        s.grow(2);
        let mut rows = Vec::new();
        for i in 0..400 {
            let (a, b) = (rng.symmetric(1, 5.0)[0], rng.symmetric(1, 0.5)[0]);
            let c = i % 2;
            rows.push((vec![a + 300.0, 0.2 * a + b + c as f32 - 200.0], c));
        }
        rows.iter().for_each(|(x, c)| s.add(x, &[*c]));
        let f = fit(&s, 1e-3).unwrap();
        assert!(f.bias.iter().all(|b| b.abs() < 5e3), "{:?}", f.bias);
        let score = |x: &[f32], c: usize| f.weight[2 * c] * x[0] + f.weight[2 * c + 1] * x[1] + f.bias[c];
        let right = rows.iter().filter(|(x, c)| score(x, *c) > score(x, 1 - c)).count();
        assert!(right > 395, "{right} of 400");
    }
}
