//! The nearest class mean (Rosenblatt's "minimum distance" rule; continual: Rebuffi et al. 2017).
//!
//! `score[c] = -½ ‖T (x - μ_c)‖²` up to a term that all classes share, with `T` the identity (`plain`), each
//! direction divided by its deviation over all rows (`scaled`), or `TᵀT = Σ⁻¹` of all rows (`whitened`, shrunk
//! as in [`super::lda`]). Unlike lda, which uses the covariance within classes, it uses only that of all rows
//! together.

use super::calibrate;
use super::fitting::{Fit, Scores, earlier, extended, feature_dim};
use super::gaussian::{Gaussian, shrunk};
use super::stats::Stats;
use crate::services::Services;
use crate::settings::range::any;
use crate::settings::settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::tensors::TensorsWriter;
use serde::{Deserialize, Serialize};

settings! { "centroid" Settings Flags {
    /// centroid: the space in which distances are measured.
    centroid: Space = Space::Whitened, any();
}}

/// The spaces in which distances can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Space {
    /// Whitened by the covariance of all rows.
    Whitened,
    /// Each direction divided by its deviation.
    Scaled,
    /// The features as they are.
    Plain,
}

/// The shrinkage, if none is given.
const FIXED: f64 = 0.05;

pub(super) fn fit(services: &mut Services<'_>, own: &Settings, draft: &mut Draft, new: &Fit<'_>) -> Result<bool> {
    let carried = earlier(services, draft, new)?.map(|x| x.1);
    let stats = extended(services, new, carried, &new.train.features, feature_dim(services))?;
    let payload = solve(&stats, own.centroid, new.common.shrinkage_or(FIXED))?.payload()?;
    let mut kept = TensorsWriter::new();
    stats.write(&mut kept)?;
    calibrate::enter(services, draft, new, payload, kept, carried)?;
    Ok(true)
}

/// Solves for the scores in a space.
///
/// # Errors
/// If the covariance is singular even after shrinking.
pub fn solve(s: &Stats, space: Space, shrinkage: f64) -> Result<Scores> {
    let total = s.covariance_of_all();
    let covariance = match space {
        Space::Whitened => shrunk(total, s.dim, shrinkage),
        // With full shrinkage only the diagonal is left.
        Space::Scaled => shrunk(total, s.dim, 1.0),
        Space::Plain => (0..s.dim).flat_map(|i| (0..=i).map(move |j| f64::from(u8::from(i == j)))).collect(),
    };
    Ok(Gaussian::with(s, covariance, 0.0)?.scores())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two classes that differ in a direction of small variance; the direction of large variance is noise.
    fn stats() -> Stats {
        let mut s = Stats::new(2);
        s.grow(2);
        for i in 0..40 {
            let noise = 100.0 * (i as f32 * 2.4).sin();
            s.add(&[noise, (i % 2) as f32], &[i % 2]);
        }
        s
    }

    #[test]
    fn the_nearest_mean_wins_and_the_space_decides_what_is_near() {
        let s = stats();
        let right = |space: Space| {
            let f = solve(&s, space, 0.01).unwrap();
            (0..40)
                .filter(|i| {
                    let x = f.of(&[100.0 * (*i as f32 * 2.4).sin(), (i % 2) as f32]);
                    usize::from(x[1] > x[0]) == i % 2
                })
                .count()
        };
        assert_eq!((right(Space::Whitened), right(Space::Scaled)), (40, 40));
        assert!(right(Space::Plain) < 40, "noise does not drown what is not rescaled");
        // In the plain space a score difference is half the difference of squared distances.
        let f = solve(&s, Space::Plain, 0.0).unwrap();
        let (x, means) = ([3.0f32, 4.0], s.means());
        let far = |c: usize| (0..2).map(|i| (f64::from(x[i]) - means[2 * c + i]).powi(2)).sum::<f64>();
        let got = f.of(&x);
        assert!((f64::from(got[0] - got[1]) - 0.5 * (far(1) - far(0))).abs() < 1e-3);
    }
}
