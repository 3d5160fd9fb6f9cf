//! Ridge regression to one-hot classes, from the same statistics as [`super::lda`].
//!
//! `W = (X̃ᵀX̃ + λ n I)⁻¹ X̃ᵀ(Y - Ȳ)` on centred features: `X̃ᵀX̃` and `X̃ᵀY` follow from moment and sums.
//!
//! With `--random-features N` the features are first mapped to `max(0, R x + b)` with `N` random units
//! (McDonnell et al. 2023, "RanPAC"), which makes the linear solution nonlinear in `x`. The bundle keeps the
//! seed, not `R`. Before that, each direction is standardised by the first task's rows: states have a few
//! directions of huge variance that would otherwise dominate every random unit. All later tasks use the same
//! standardisation, because the statistics are of the same random units.

use super::calibrate;
use super::fitting::{Fit, Scores, earlier, extended, feature_dim, standard};
use super::solve::Cholesky;
use super::stats::Stats;
use crate::services::Services;
use crate::settings::range::such;
use crate::settings::settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::hidden::{self, Hidden};
use conpet_formats::tensors::{Tensors, TensorsWriter};
use conpet_runtime::select::through;
use rayon::prelude::*;

settings! { "ridge" Settings Flags {
    /// ridge: number of random units that the features are mapped through; 0 uses the features themselves.
    random_features: usize = 0, such(format!("0 to {}", hidden::MOST), |n| *n <= hidden::MOST);
}}

/// The strength of the regularisation, if none is given.
const FIXED: f64 = 0.05;

pub(super) fn fit(services: &mut Services<'_>, own: &Settings, draft: &mut Draft, new: &Fit<'_>) -> Result<bool> {
    let (dim, size, seed) = (feature_dim(services), own.random_features, services.settings().training.seed);
    let before = earlier(services, draft, new)?;
    // Shift and scale for random features: the bundle's, or new ones for the first task.
    let standard = match before {
        None => (size > 0).then(|| standard(&new.train.features, dim)),
        Some((payload, _)) => {
            let t = Tensors::parse(payload).map_err(|e| e.in_section("selector"))?;
            let get = |name: &str| t.get(name).map(|x| x.to_f32());
            get(hidden::SHIFT).zip(get(hidden::SCALE))
        }
    };
    let layer = match (before, &standard) {
        (Some((payload, _)), _) => Hidden::load(payload, dim).map_err(|e| e.in_section("selector"))?,
        (None, Some((shift, scale))) => Some(Hidden::random(seed, size, shift, scale)),
        (None, None) => None,
    };
    let features = layer.as_ref().map(|h| through(h, services.engine().cpu(), &new.train.features));
    let (x, width) = (features.as_deref().unwrap_or(&new.train.features), layer.as_ref().map_or(dim, Hidden::size));
    let stats = extended(services, new, before.map(|x| x.1), x, width)?;
    let mut payload = solve(&stats, new.common.shrinkage_or(FIXED))?.payload()?;
    if let Some((shift, scale)) = standard {
        let seed = match before {
            Some((p, _)) => hidden::seed(p)?,
            None => seed,
        };
        Hidden::write_random(&mut payload, seed, width, &shift, &scale)?;
    }
    let mut kept = TensorsWriter::new();
    stats.write(&mut kept)?;
    calibrate::enter(services, draft, new, payload, kept, before.map(|x| x.1))?;
    Ok(true)
}

/// The number of random units in a payload.
///
/// # Errors
/// If the payload cannot be read.
pub(super) fn stored_units(payload: &[u8], dim: usize) -> Result<usize> {
    Ok(Hidden::load(payload, dim)?.map_or(0, |h| h.size()))
}

/// Solves for the scores; `lambda` is relative to the mean diagonal of the covariance.
///
/// # Errors
/// If the system is singular.
pub fn solve(s: &Stats, lambda: f64) -> Result<Scores> {
    let (d, n) = (s.dim, s.rows().max(1) as f64);
    let mean = s.mean();
    let mut gram: Vec<f64> = s.covariance_of_all().into_iter().map(|v| v * n).collect();
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
        let f = solve(&s, 1e-9).unwrap();
        for (x, y) in [([0.0, 2.0], [1.0, 0.0]), ([5.0, 2.0], [0.0, 1.0])] {
            for c in 0..2 {
                let got = f.weight[2 * c] * x[0] + f.weight[2 * c + 1] * x[1] + f.bias[c];
                assert!((got - y[c]).abs() < 1e-3, "{got} for {}", y[c]);
            }
        }
    }

    #[test]
    fn random_features_solve_what_no_line_can() {
        // Opposite corners of a square: exclusive or.
        let rows: Vec<([f32; 2], usize)> =
            (0..80).map(|i| ([(i % 2) as f32 + 0.01 * i as f32, (i / 2 % 2) as f32], (i % 2) ^ (i / 2 % 2))).collect();
        let x: Vec<f32> = rows.iter().flat_map(|r| r.0).collect();
        let y: Vec<usize> = rows.iter().map(|r| r.1).collect();
        let right = |features: &[f32]| {
            let dim = features.len() / y.len();
            let mut s = Stats::new(dim);
            s.grow(2);
            s.add(features, &y);
            let f = solve(&s, 1e-3).unwrap();
            features.chunks_exact(dim).zip(&y).filter(|(x, y)| f.of(x)[**y] > 0.5).count()
        };
        let (shift, scale) = standard(&x, 2);
        let layer = Hidden::random(1, 64, &shift, &scale);
        let cpu = conpet_runtime::cpu::Cpu {
            kernels: conpet_runtime::kernels::Kernels::naive(),
            ..conpet_runtime::cpu::Cpu::new(1)
        };
        let wide = through(&layer, &cpu, &x);
        assert!(right(&x) < 60, "{} without", right(&x));
        assert_eq!(right(&wide), 80);
    }
}
