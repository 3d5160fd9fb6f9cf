//! Fitting selectors. The closed forms read streamed sufficient statistics only: exact for any
//! order of tasks, and no earlier row is needed again.

pub mod lda;
pub mod ridge;
pub mod solve;
pub mod stats;

pub use stats::Stats;

/// Linear scores over classes: `score[c] = weight[c] · x + bias[c]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// `[classes, dim]`.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
}
