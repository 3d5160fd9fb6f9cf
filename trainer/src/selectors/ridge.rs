//! Ridge regression to one-hot classes, from the same statistics as [`super::lda`].
//!
//! `W = (X̃ᵀX̃ + λ n I)⁻¹ X̃ᵀ(Y - Ȳ)` on centred features: `X̃ᵀX̃` and `X̃ᵀY` follow from moment and sums.

use super::solve::Cholesky;
use super::{Scores, Stats};
use conpet_formats::Result;
use rayon::prelude::*;

/// Fits the scores; `lambda` is relative to the mean diagonal of the covariance.
///
/// # Errors
/// If the system is singular.
pub fn fit(s: &Stats, lambda: f64) -> Result<Scores> {
    let (d, n) = (s.dim, s.rows().max(1) as f64);
    let mean: Vec<f64> = (0..d).map(|i| s.sums.iter().skip(i).step_by(d).sum::<f64>() / n).collect();
    let mut gram = s.moment.clone();
    let mut at = 0;
    for i in 0..d {
        let mi = n * mean[i];
        gram[at..=at + i].iter_mut().zip(&mean).for_each(|(g, mj)| *g -= mi * mj);
        at += i + 1;
    }
    let diagonal = |i: usize| i * (i + 1) / 2 + i;
    let ridge = lambda * (0..d).map(|i| gram[diagonal(i)]).sum::<f64>() / d as f64 + 1e-9;
    (0..d).for_each(|i| gram[diagonal(i)] += ridge);
    let factor = Cholesky::new(gram, d)?;
    let rows: Vec<(Vec<f32>, f32)> = s
        .sums
        .par_chunks_exact(d)
        .zip(&s.counts)
        .map(|(sum, count)| {
            let share = *count as f64 / n;
            let mut w: Vec<f64> = sum.iter().zip(&mean).map(|(x, m)| x - *count as f64 * m).collect();
            factor.solve(&mut w);
            let b = share - w.iter().zip(&mean).map(|(w, m)| w * m).sum::<f64>();
            (w.iter().map(|v| *v as f32).collect(), b as f32)
        })
        .collect();
    Ok(Scores { weight: rows.iter().flat_map(|r| r.0.clone()).collect(), bias: rows.iter().map(|r| r.1).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regresses_to_one_hot() {
        let mut s = Stats::new(2);
        s.grow(2);
        s.add(&[0.0, 1.0, 0.0, 3.0, 5.0, 1.0, 5.0, 3.0], &[0, 0, 1, 1]);
        let f = fit(&s, 1e-9).unwrap();
        for (x, y) in [([0.0, 2.0], [1.0, 0.0]), ([5.0, 2.0], [0.0, 1.0])] {
            for c in 0..2 {
                let got = f.weight[2 * c] * x[0] + f.weight[2 * c + 1] * x[1] + f.bias[c];
                assert!((got - y[c]).abs() < 1e-3, "{got} for {}", y[c]);
            }
        }
    }
}
