//! Fitting selectors. The closed forms read streamed sufficient statistics only: exact for any
//! order of tasks, and no earlier row is needed again.

pub mod lda;
pub mod ngrams;
pub mod ridge;
pub mod solve;
pub mod stats;

pub use ngrams::Counts;
pub use stats::Stats;

/// Linear scores over classes: `score[c] = weight[c] · x + bias[c]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// `[classes, dim]`.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
}

impl Scores {
    /// The score of each class for a feature `x [dim]`.
    pub fn of(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(x.len()).zip(&self.bias);
        rows.map(|(w, b)| w.iter().zip(x).map(|(a, b)| a * b).sum::<f32>() + b).collect()
    }
}
