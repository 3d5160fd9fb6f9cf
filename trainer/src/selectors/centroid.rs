//! The nearest class mean (Rosenblatt's "minimum distance" rule; continual: Rebuffi et al. 2017).
//!
//! `score[c] = -½ ‖T (x - μ_c)‖²` less what all classes share, with `T` the identity (`plain`), each
//! direction's own deviation over all rows (`scaled`), or `TᵀT = Σ⁻¹` of all rows (`whitened`, shrunk as
//! [`super::lda`]'s). Unlike lda, which knows the covariance within classes, it asks only what all
//! rows together look like.

use super::lda::{Form, class_gaussians, shrunk};
use super::solve::Cholesky;
use super::{New, Scores, Stats, earlier, enter, extended, feature_dim};
use crate::run::Run;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::selector::SelectorKind;

/// The spaces distances may be taken in.
pub const SPACES: [&str; 3] = ["whitened", "scaled", "plain"];

pub(super) fn fit(run: &mut Run<'_>, draft: &mut Draft, new: &New<'_>) -> Result<bool> {
    let carried = earlier(run, draft, new)?.map(|x| x.1);
    let stats = extended(run, new, carried, &new.train.features, feature_dim(run))?;
    let scores = solve(&stats, &run.config.centroid, run.config.shrinkage)?;
    enter(run, draft, new, SelectorKind::Centroid, scores.payload()?, Form::default(), stats.payload()?)?;
    Ok(true)
}

/// The scores in one of [`SPACES`].
///
/// # Errors
/// If the covariance is singular even after shrinking.
pub fn solve(s: &Stats, space: &str, shrinkage: f64) -> Result<Scores> {
    let total = s.covariance_of_all();
    let covariance = match space {
        "whitened" => shrunk(total, s.dim, shrinkage),
        // Nothing but the diagonal is left.
        "scaled" => shrunk(total, s.dim, 1.0),
        _ => (0..s.dim).flat_map(|i| (0..=i).map(move |j| f64::from(u8::from(i == j)))).collect(),
    };
    Ok(class_gaussians(s, &Cholesky::new(covariance, s.dim)?).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two classes apart in a quiet direction; the loud one says nothing.
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
        let right = |space: &str| {
            let f = solve(&s, space, 0.01).unwrap();
            (0..40)
                .filter(|i| {
                    let x = f.of(&[100.0 * (*i as f32 * 2.4).sin(), (i % 2) as f32]);
                    usize::from(x[1] > x[0]) == i % 2
                })
                .count()
        };
        assert_eq!((right("whitened"), right("scaled")), (40, 40));
        assert!(right("plain") < 40, "noise does not drown what is not rescaled");
        // In the plain space a score difference is half the difference of squared distances.
        let f = solve(&s, "plain", 0.0).unwrap();
        let (x, means) = ([3.0f32, 4.0], s.means());
        let far = |c: usize| (0..2).map(|i| (f64::from(x[i]) - means[2 * c + i]).powi(2)).sum::<f64>();
        let got = f.of(&x);
        assert!((f64::from(got[0] - got[1]) - 0.5 * (far(1) - far(0))).abs() < 1e-3);
    }
}
