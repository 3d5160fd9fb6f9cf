//! Selectors: what maps an input to weights over the tasks of a bundle, and so to modules.
//!
//! Scalar references live here; the runtime computes the same values fast. Kinds:
//!
//! * `task`: the caller names the task (the oracle line in every report);
//! * `single`: there is one module, it is always in force;
//! * `uniform`: every task weighs the same, all modules run and the surest label wins (the line a
//!   selector must be above);
//! * `lda`, `ridge`, `centroid` (closed forms), `linear`, `mlp` (trained): scores over *classes* of
//!   the tasks, read from frozen trunk features; payload tensors [`WEIGHT`] `[classes, dim]`,
//!   [`BIAS`] `[classes]` and [`CLASS_TASK`] `[classes]` (I32, index into the bundle's task list,
//!   ascending). A hidden layer may come before the weights ([`crate::hidden`]: `mlp`, `ridge` with
//!   random features); `lda` may have n-grams beside them ([`crate::ngrams`]), whose scores
//!   are added before the temperature; any may measure how unlike each task an input is
//!   ([`crate::novelty`]), and refuse it ([`crate::refusal`]);
//! * `conpet`: a LoRA of its own on the base and a T-way linear head (Song et al. 2023,
//!   arXiv 2309.14763, Dynamic ConPET); payload: the LoRA's tensors plus [`WEIGHT`] `[tasks, dim]`
//!   and [`BIAS`] `[tasks]`.

mod fast;
mod scorer;

pub use fast::{FAST, Fast};
pub use scorer::Scorer;

use crate::head::log_softmax;
use serde::{Deserialize, Serialize};

/// Name of the score weight tensor.
pub const WEIGHT: &str = "weight";
/// Name of the score bias tensor.
pub const BIAS: &str = "bias";
/// Name of the class-to-task tensor.
pub const CLASS_TASK: &str = "class_task";

/// What a selector reads of an input.
#[derive(Clone, Copy, PartialEq)]
enum Reads {
    Nothing,
    /// Features of the trunk, from which it scores classes.
    Trunk,
    /// A feature of a full pass of its own.
    Pass,
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal, reads $reads:ident;)*) => {
        /// The kinds of selector this release knows.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "lowercase")]
        pub enum SelectorKind { $($(#[doc = $doc])* $variant,)* }

        impl SelectorKind {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The name used in manifests and flags.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            const fn what_it_reads(self) -> Reads {
                match self { $(Self::$variant => Reads::$reads,)* }
            }
        }
    };
}

kinds! {
    /// The caller names the task.
    Task = "task", reads Nothing;
    /// One module for everything.
    Single = "single", reads Nothing;
    /// All tasks weigh the same.
    Uniform = "uniform", reads Nothing;
    /// Shared-covariance Gaussian classes.
    Lda = "lda", reads Trunk;
    /// Ridge regression to one-hot classes, of the features or of random ones made from them.
    Ridge = "ridge", reads Trunk;
    /// The nearest class mean.
    Centroid = "centroid", reads Trunk;
    /// Multinomial logistic regression, trained on a bounded memory.
    Linear = "linear", reads Trunk;
    /// One hidden layer, trained on a bounded memory.
    Mlp = "mlp", reads Trunk;
    /// A trained LoRA and a T-way head, one full pass.
    Conpet = "conpet", reads Pass;
}

impl SelectorKind {
    /// True if it scores classes from features of the trunk.
    pub const fn scores_classes(self) -> bool {
        matches!(self.what_it_reads(), Reads::Trunk)
    }

    /// True if it reads a feature and so has a payload.
    pub const fn reads(self) -> bool {
        !matches!(self.what_it_reads(), Reads::Nothing)
    }
}

/// A selector's decision about one input.
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
    /// How unlike all tasks the input is; comparable within one stage only.
    pub novelty: f32,
    /// The largest share, over the tasks, of a task's own rows that are at least as novel; `None` if no rows were
    /// kept to compare with ([`crate::refusal`]).
    pub p_value: Option<f32>,
    /// True if the input is refused, because it is too unlike them: the base alone answers.
    pub abstain: bool,
}

/// From class scores to a decision: posterior `softmax(scores / temperature)`, a task's weight is
/// the sum over its classes. Novelty is one minus the best class posterior, and the input is refused if no class
/// reaches `threshold`; where a payload has a [`crate::novelty`], the runtime takes that instead.
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
        novelty: 1.0 - best,
        p_value: None,
        abstain: best < threshold,
    }
}

impl Decision {
    /// Every task weighs the same (`uniform`); classes and novelty play no part.
    ///
    /// # Panics
    /// If there are no tasks.
    pub fn uniform(n_tasks: usize) -> Self {
        decide(vec![0.0; n_tasks], &(0..n_tasks).collect::<Vec<_>>(), n_tasks, 1.0, 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_manifests() {
        for kind in SelectorKind::ALL {
            assert_eq!(serde_json::to_string(kind).unwrap(), format!("{:?}", kind.name()));
        }
    }

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
