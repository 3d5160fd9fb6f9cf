//! Selectors: what maps an input to weights over the tasks of a bundle, and so to modules.
//!
//! Scalar references live here; the runtime computes the same numbers fast. Kinds:
//!
//! * `task`: the caller names the task (the oracle line in every report);
//! * `single`: there is one module, it is always in force;
//! * `lda`, `ridge`: closed-form linear scores over *classes* of the tasks, read from frozen
//!   trunk features; payload tensors [`WEIGHT`] `[classes, dim]`, [`BIAS`] `[classes]` and
//!   [`CLASS_TASK`] `[classes]` (I32, index into the bundle's task list, ascending); `lda` may have
//!   token n-grams beside them ([`crate::ngrams`]), whose scores are added before the temperature;
//! * `conpet`: a LoRA of its own on the base and a T-way linear head (Song et al. 2023,
//!   arXiv 2309.14763, Dynamic ConPET); payload: the LoRA's tensors plus [`WEIGHT`] `[tasks, dim]`
//!   and [`BIAS`] `[tasks]`.

use crate::head::log_softmax;
use serde::{Deserialize, Serialize};

/// Name of the score weight tensor.
pub const WEIGHT: &str = "weight";
/// Name of the score bias tensor.
pub const BIAS: &str = "bias";
/// Name of the class-to-task tensor.
pub const CLASS_TASK: &str = "class_task";

/// The kinds of selector this release knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SelectorKind {
    /// The caller names the task.
    Task,
    /// One module for everything.
    Single,
    /// Shared-covariance Gaussian classes.
    Lda,
    /// Ridge regression to one-hot classes.
    Ridge,
    /// A trained LoRA and a T-way head, one full pass.
    Conpet,
}

impl SelectorKind {
    /// The name used in manifests and flags.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Single => "single",
            Self::Lda => "lda",
            Self::Ridge => "ridge",
            Self::Conpet => "conpet",
        }
    }
}

/// What a selector says about one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Decision {
    /// Log posterior of each class the selector scores (`conpet`: one class per task).
    pub class_log_posterior: Vec<f32>,
    /// Weight of each task, summing to 1.
    pub task_weight: Vec<f32>,
    /// Tasks by falling weight; ties keep the lower index first.
    pub order: Vec<usize>,
    /// Weight of the first minus weight of the second task (1 if there is one task).
    pub margin: f32,
    /// Entropy of `task_weight` in nats.
    pub entropy: f32,
    /// True if the best class posterior is below the threshold: use the base alone.
    pub abstain: bool,
}

/// From class scores to a decision: posterior `softmax(scores / temperature)`, a task's weight is
/// the sum over its classes, abstain if no class reaches `threshold`.
///
/// # Panics
/// If `scores` is empty, or lengths differ, or `class_task` names a task `>= n_tasks`.
pub fn decide(
    mut scores: Vec<f32>,
    class_task: &[usize],
    n_tasks: usize,
    temperature: f32,
    threshold: f32,
) -> Decision {
    assert_eq!(scores.len(), class_task.len());
    assert!(!scores.is_empty());
    log_softmax(&mut scores, temperature);
    let mut weight = vec![0.0f64; n_tasks];
    for (lp, t) in scores.iter().zip(class_task) {
        weight[*t] += f64::from(*lp).exp();
    }
    let mut order: Vec<usize> = (0..n_tasks).collect();
    order.sort_by(|a, b| weight[*b].total_cmp(&weight[*a]).then(a.cmp(b)));
    let margin = match order.as_slice() {
        [a, b, ..] => weight[*a] - weight[*b],
        _ => 1.0,
    };
    let entropy: f64 = weight.iter().filter(|w| **w > 0.0).map(|w| -w * w.ln()).sum();
    let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max).exp();
    Decision {
        class_log_posterior: scores,
        task_weight: weight.iter().map(|w| *w as f32).collect(),
        order,
        margin: margin as f32,
        entropy: entropy as f32,
        abstain: best < threshold,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_weight_is_the_sum_over_its_classes() {
        // Two classes of task 0 beat one stronger class of task 1 together.
        let d = decide(vec![1.0, 1.0, 1.5], &[0, 0, 1], 2, 1.0, 0.0);
        let e = |x: f64| x.exp();
        let z = 2.0 * e(1.0) + e(1.5);
        assert!((f64::from(d.task_weight[0]) - 2.0 * e(1.0) / z).abs() < 1e-6);
        assert_eq!(d.order, [0, 1]);
        assert!((d.task_weight.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(!d.abstain);
        assert!(decide(vec![0.0, 0.0], &[0, 1], 2, 1.0, 0.6).abstain);
        assert_eq!(decide(vec![3.0], &[0], 1, 1.0, 0.0).margin, 1.0);
    }
}
