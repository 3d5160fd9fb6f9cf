//! Linear discriminant analysis: Gaussian classes with one shared covariance (Fisher 1936).
//!
//! `score[c] = (μ_c - μ)ᵀ Σ⁻¹ (x - ½ (μ_c + μ))` with the mean `μ` of all rows, equal priors (which is
//! `μ_cᵀ Σ⁻¹ x - ½ μ_cᵀ Σ⁻¹ μ_c` up to a term that all classes share); `Σ = (1 - γ) S + γ diag(S)` with the
//! pooled within-class covariance `S` (shrinkage towards "target D" of Schäfer & Strimmer 2005, γ given). Token
//! n-grams may be counted beside it ([`super::ngrams`]).

use super::calibrate::Form;
use super::fitting::{Fit, Scores, earlier, enter, extended, feature_dim};
use super::ngrams::Counts;
use super::solve::Cholesky;
use super::stats::Stats;
use crate::nn::matmul::{View, matmul};
use crate::services::Services;
use crate::settings::range::not_negative;
use crate::settings::settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::tensors::Tensors;
use conpet_formats::{ngrams, novelty};
use rayon::prelude::*;

settings! { "lda" Settings Flags {
    /// lda: weight of the token n-gram classifier beside the states; 0 leaves it out.
    ngram_weight: f64 = 1.0, not_negative();
}}

pub(super) fn fit(services: &mut Services<'_>, own: &Settings, draft: &mut Draft, new: &Fit<'_>) -> Result<bool> {
    let before = earlier(services, draft, new)?;
    let stats = extended(services, new, before.map(|x| x.1), &new.train.features, feature_dim(services))?;
    let (scores, form) = solve(&stats, new.common.shrinkage)?;
    let mut payload = scores.payload()?;
    // A bundle that began without n-grams continues without them, since the earlier rows can no longer be counted.
    let counts = match before {
        Some((payload, _)) => Counts::read(payload).map_err(|e| e.in_section("selector"))?,
        None => (own.ngram_weight > 0.0).then(Counts::default),
    };
    if let Some(mut counts) = counts {
        let classes = services.tasks()[new.task].classes();
        counts.grow(classes);
        let first = stats.classes() - classes;
        new.train.inputs.iter().zip(&new.train.classes).for_each(|(tokens, c)| counts.add(tokens, first + c));
        counts.write(own.ngram_weight, &mut payload)?;
    }
    enter(services, draft, new, payload, form, stats.payload()?)?;
    Ok(true)
}

/// The weight of the n-grams in a payload; 0 if it has none.
///
/// # Errors
/// If the payload cannot be read.
pub(super) fn stored_weight(payload: &[u8]) -> Result<f64> {
    let scale = Tensors::parse(payload)?.get(ngrams::SCALE).map(|t| t.to_f32());
    Ok(scale.and_then(|s| s.first().copied()).map_or(0.0, as_stored))
}

/// The weight that a stored f32 stands for: the shortest decimal that rounds to it.
pub(super) fn as_stored(weight: f32) -> f64 {
    weight.to_string().parse().unwrap_or_else(|_| f64::from(weight))
}

/// Solves for the scores and the form of their novelty.
///
/// # Errors
/// If the covariance is singular even after shrinking.
pub fn solve(s: &Stats, shrinkage: f64) -> Result<(Scores, Form)> {
    let factor = Cholesky::new(shrunk(s.covariance_within(), s.dim, shrinkage), s.dim)?;
    let (scores, weights) = class_gaussians(s, &factor);
    let form = if s.classes() > novelty::MOST { Form::default() } else { form(s, &weights)? };
    Ok((scores, form))
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

/// Scores of Gaussian classes with equal priors and one covariance (given as its Cholesky factor); and their
/// weights `Σ⁻¹ (μ_c - μ)`, `[classes, dim]`, unrounded.
pub(super) fn class_gaussians(s: &Stats, covariance: &Cholesky) -> (Scores, Vec<f64>) {
    // Relative to the mean of all rows: what the classes share adds the same to every score, and in f32 it
    // would drown the differences.
    let centre = s.mean();
    let rows: Vec<(Vec<f64>, f32)> = s
        .means()
        .par_chunks_exact(s.dim)
        .map(|m| {
            let mut w: Vec<f64> = m.iter().zip(&centre).map(|(m, c)| m - c).collect();
            covariance.solve(&mut w);
            let b = -0.5 * w.iter().zip(m.iter().zip(&centre)).map(|(w, (m, c))| w * (m + c)).sum::<f64>();
            (w, b as f32)
        })
        .collect();
    let bias = rows.iter().map(|r| r.1).collect();
    let weights: Vec<f64> = rows.into_iter().flat_map(|r| r.0).collect();
    (Scores { weight: weights.iter().map(|v| *v as f32).collect(), bias }, weights)
}

/// `F = D (I + D G D)⁻¹ D` and the shifts, see [`conpet_formats::novelty`].
fn form(s: &Stats, weights: &[f64]) -> Result<Form> {
    let (n, d, centre) = (s.classes(), s.dim, s.mean());
    let apart: Vec<f64> = s.means().iter().enumerate().map(|(i, m)| m - centre[i % d]).collect();
    let gram = matmul(View::new(&apart, d), View::new(weights, d).t(), rayon::current_num_threads());
    let root: Vec<f64> = s.counts.iter().map(|c| (*c as f64 / s.rows().max(1) as f64).sqrt()).collect();
    let inner = (0..n).flat_map(|i| (0..=i).map(move |j| (i, j)));
    let inner = inner.map(|(i, j)| root[i] * gram[i * n + j] * root[j] + f64::from(u8::from(i == j))).collect();
    let factor = Cholesky::new(inner, n)?;
    let columns: Vec<Vec<f64>> = (0..n)
        .into_par_iter()
        .map(|i| {
            let mut e = vec![0.0; n];
            e[i] = root[i];
            factor.solve(&mut e);
            e
        })
        .collect();
    let shift: Vec<f32> = (0..n).map(|i| 0.5 * gram[i * n + i] as f32).collect();
    // Classes too far apart for the payload's range need no such form.
    if shift.iter().any(|h| *h > f32::from(half::f16::MAX)) {
        return Ok(Form::default());
    }
    let form = (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|(i, j)| (root[j] * columns[i][j]) as f32);
    Ok(Form { form: form.collect(), shift })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;
    use conpet_formats::novelty::Novelty;

    #[test]
    fn separates_gaussians_along_the_right_direction() {
        // Two classes differ in x1 only; x0 has large noise that is correlated with x1's. Both are far from the
        // origin, which must not affect the scores.
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
        let f = solve(&s, 1e-3).unwrap().0;
        assert!(f.bias.iter().all(|b| b.abs() < 5e3), "{:?}", f.bias);
        let score = |x: &[f32], c: usize| f.weight[2 * c] * x[0] + f.weight[2 * c + 1] * x[1] + f.bias[c];
        let right = rows.iter().filter(|(x, c)| score(x, *c) > score(x, 1 - c)).count();
        assert!(right > 395, "{right} of 400");
    }

    /// The form in the classes' scores is the relative Mahalanobis distance of Ren et al. 2021, computed
    /// here as they define it, with both covariances inverted.
    #[test]
    fn novelty_is_half_the_relative_mahalanobis_distance() {
        let mut rng = Stream::new(2, "t", 0);
        let (d, classes) = (5, 3);
        let mut s = Stats::new(d);
        s.grow(classes);
        for i in 0..90 {
            let mut x = rng.symmetric(d, 1.0);
            x[i % classes] += 3.0;
            // Classes of different size have different weight in the statistics of all rows.
            s.add(&x, &[if i < 40 { 0 } else { i % classes }]);
        }
        let (scores, form) = solve(&s, 0.2).unwrap();
        let novelty = Novelty::new(form.shift, form.form, 0.0);
        let within = shrunk(s.covariance_within(), d, 0.2);
        let (means, centre) = (s.means(), s.mean());
        let mut all = within.clone();
        for c in 0..classes {
            let prior = s.counts[c] as f64 / s.rows() as f64;
            let m: Vec<f64> = (0..d).map(|i| means[c * d + i] - centre[i]).collect();
            let pairs = (0..d).flat_map(|i| (0..=i).map(move |j| (i, j)));
            pairs.zip(&mut all).for_each(|((i, j), v)| *v += prior * m[i] * m[j]);
        }
        let [within, all] = [within, all].map(|c| Cholesky::new(c, d).unwrap());
        let distance = |factor: &Cholesky, x: &[f32], m: &[f64]| {
            let v: Vec<f64> = x.iter().zip(m).map(|(x, m)| f64::from(*x) - m).collect();
            let mut w = v.clone();
            factor.solve(&mut w);
            v.iter().zip(&w).map(|(a, b)| a * b).sum::<f64>()
        };
        for i in 0..20 {
            let x = Stream::new(3, "x", i).symmetric(d, 6.0);
            let nearest = means.chunks_exact(d).map(|m| distance(&within, &x, m)).fold(f64::MAX, f64::min);
            let want = 0.5 * (nearest - distance(&all, &x, &centre));
            let states = scores.of(&x);
            let got = f64::from(novelty.of(&states, &states, 0.0));
            // The scores are f32 values of some tens.
            assert!((got - want).abs() < 1e-3 * (1.0 + want.abs()), "{got} for {want}");
        }
    }
}
