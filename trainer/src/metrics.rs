//! Metrics of continual learning, from the matrix `R[t][s]`: the main metric on task s after stage t.
//!
//! The main metric of a task is what `stream.json` names; by default accuracy for a classification task and
//! ROUGE-L for a generation task.

pub mod calibration;
pub mod detection;
pub mod labels;
pub mod text;

use detection::Detection;
use serde::{Deserialize, Serialize};

/// The main metric of a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Fraction of rows answered correctly; a text must match exactly.
    #[default]
    Accuracy,
    /// Mean F1 over the task's labels.
    MacroF1,
    /// Fraction of texts that match exactly.
    ExactMatch,
    /// Mean [`text::rouge_l`] over the rows.
    RougeL,
}

/// All metrics of one task at one stage; `None` where they do not apply.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskScores {
    /// Which of them is the main metric.
    pub metric: Metric,
    /// Mean F1 over its labels.
    pub macro_f1: Option<f64>,
    /// Fraction of its texts that match exactly.
    pub exact_match: Option<f64>,
    /// Mean ROUGE-L of its texts.
    pub rouge_l: Option<f64>,
    /// Rows of its own that the selector refuses.
    #[serde(default)]
    pub refused: usize,
    /// Expected calibration error of its answers with labels.
    #[serde(default)]
    pub ece: Option<f64>,
    /// Rows that n-grams alone are sure enough to answer (`--fast`).
    #[serde(default)]
    pub fast: usize,
    /// Of these, rows that they answer otherwise.
    #[serde(default)]
    pub flips: usize,
}

/// Counts after one stage, one entry for each task of the stream; tasks not yet seen have no rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageScores {
    /// Test rows of each task that were scored.
    pub rows: Vec<usize>,
    /// Rows of each task answered correctly.
    pub right: Vec<usize>,
    /// Rows of each task whose true task the selector chose first.
    pub routed: Vec<usize>,
    /// Rows of each task answered correctly if the task is named (an oracle selector).
    pub oracle: Vec<usize>,
    /// Counts of rows, `[true task][chosen task]`.
    pub confusion: Vec<Vec<usize>>,
    /// Further metrics of each task; reports of older releases have none.
    #[serde(default)]
    pub tasks: Vec<TaskScores>,
    /// Mean F1 over the labels of all tasks scored.
    #[serde(default)]
    pub macro_f1: Option<f64>,
    /// Expected calibration error of all answers with labels.
    #[serde(default)]
    pub ece: Option<f64>,
    /// How well inputs of no task are refused, if the stream has some.
    #[serde(default)]
    pub detection: Option<Detection>,
}

impl StageScores {
    /// The main metric of a task; `None` if it has no rows.
    pub fn main(&self, task: usize) -> Option<f64> {
        let rows = self.rows[task];
        let accuracy = (rows > 0).then(|| self.right[task] as f64 / rows as f64);
        let scores = self.tasks.get(task).copied().unwrap_or_default();
        match scores.metric {
            Metric::Accuracy => accuracy,
            Metric::MacroF1 => scores.macro_f1,
            Metric::ExactMatch => scores.exact_match,
            Metric::RougeL => scores.rouge_l,
        }
    }

    /// The mean of the main metric over the tasks scored.
    pub fn average(&self) -> Option<f64> {
        mean(&(0..self.rows.len()).filter_map(|t| self.main(t)).collect::<Vec<_>>())
    }
}

fn mean(v: &[f64]) -> Option<f64> {
    (!v.is_empty()).then(|| v.iter().sum::<f64>() / v.len() as f64)
}

/// The metrics of a whole run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// `R[t][s]`; `None` for tasks that stage t was not scored on.
    pub matrix: Vec<Vec<Option<f64>>>,
    /// Mean over tasks of the last row of the matrix ("average accuracy" or "average performance").
    pub average_accuracy: f64,
    /// Correct rows over all rows after the last stage ("whole accuracy", micro average).
    pub whole_accuracy: f64,
    /// Mean over tasks but the last of (best accuracy at an earlier stage - last); Chaudhry et al. 2018.
    pub forgetting: Option<f64>,
    /// Mean over tasks but the last of `R[T][s] - R[s][s]`; Lopez-Paz & Ranzato 2017.
    pub bwt: Option<f64>,
    /// Mean over tasks but the first of `R[s-1][s] - b[s]`; 0 by construction if the labels of a task are
    /// unknown before its stage (then also the untrained baseline b is 0).
    pub fwt: Option<f64>,
    /// Fraction of rows whose true task the selector chose first.
    pub routing_accuracy: f64,
    /// Whole accuracy if the task were always known.
    pub oracle_accuracy: f64,
    /// Mean F1 over all labels after the last stage.
    #[serde(default)]
    pub macro_f1: Option<f64>,
    /// Mean ROUGE-L over the generation tasks, after the last stage.
    #[serde(default)]
    pub rouge_l: Option<f64>,
    /// Mean fraction of exact matches over the generation tasks, after the last stage.
    #[serde(default)]
    pub exact_match: Option<f64>,
    /// How well inputs of no task are refused, at the last stage.
    #[serde(default)]
    pub detection: Option<Detection>,
}

/// Computes the metrics from the stages' counts.
pub fn metrics(stages: &[StageScores]) -> Metrics {
    let ratio = |a: usize, b: usize| (b > 0).then(|| a as f64 / b as f64);
    let matrix: Vec<Vec<Option<f64>>> = stages.iter().map(|s| (0..s.rows.len()).map(|t| s.main(t)).collect()).collect();
    let Some((last, scores)) = matrix.last().zip(stages.last()) else { return Metrics::default() };
    let of_texts =
        |f: &dyn Fn(&TaskScores) -> Option<f64>| mean(&scores.tasks.iter().filter_map(f).collect::<Vec<_>>());
    let share = |v: &[usize]| ratio(v.iter().sum(), scores.rows.iter().sum()).unwrap_or(0.0);
    let seen: Vec<f64> = last.iter().flatten().copied().collect();
    let (mut lost, mut back) = (Vec::new(), Vec::new());
    let final_stage = matrix.len() - 1;
    for (s, now) in last.iter().enumerate() {
        let earlier: Vec<f64> = matrix[..final_stage].iter().filter_map(|row| row.get(s).copied().flatten()).collect();
        if let (Some(now), Some(first)) = (now, earlier.first()) {
            lost.push(earlier.iter().copied().fold(f64::MIN, f64::max) - now);
            back.push(now - first);
        }
    }
    Metrics {
        average_accuracy: mean(&seen).unwrap_or(0.0),
        whole_accuracy: share(&scores.right),
        forgetting: mean(&lost),
        bwt: mean(&back),
        fwt: (matrix.len() > 1).then_some(0.0),
        routing_accuracy: share(&scores.routed),
        oracle_accuracy: share(&scores.oracle),
        macro_f1: scores.macro_f1,
        rouge_l: of_texts(&|t| t.rouge_l),
        exact_match: of_texts(&|t| t.exact_match),
        detection: scores.detection,
        matrix,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_computed_case() {
        let stage = |right: &[usize], rows: &[usize]| StageScores {
            rows: rows.to_vec(),
            right: right.to_vec(),
            routed: right.to_vec(),
            oracle: rows.to_vec(),
            ..StageScores::default()
        };
        let m = metrics(&[
            stage(&[8, 0, 0], &[10, 0, 0]),
            stage(&[9, 4, 0], &[10, 10, 0]),
            stage(&[6, 4, 18], &[10, 10, 20]),
        ]);
        assert_eq!(m.matrix[0], [Some(0.8), None, None]);
        assert!((m.average_accuracy - (0.6 + 0.4 + 0.9) / 3.0).abs() < 1e-12);
        assert!((m.whole_accuracy - 28.0 / 40.0).abs() < 1e-12);
        assert!((m.forgetting.unwrap() - (0.3 + 0.0) / 2.0).abs() < 1e-12);
        assert!((m.bwt.unwrap() - (-0.2 + 0.0) / 2.0).abs() < 1e-12);
        assert_eq!(m.oracle_accuracy, 1.0);
        assert_eq!(metrics(&[]).forgetting, None);
        // The matrix holds each task's own metric.
        let mut mixed = stage(&[8, 3], &[10, 10]);
        mixed.tasks = vec![
            TaskScores::default(),
            TaskScores { metric: Metric::RougeL, rouge_l: Some(0.5), exact_match: Some(0.3), ..TaskScores::default() },
        ];
        let m = metrics(&[mixed]);
        assert_eq!(m.matrix[0], [Some(0.8), Some(0.5)]);
        assert!((m.average_accuracy - 0.65).abs() < 1e-12 && (m.whole_accuracy - 0.55).abs() < 1e-12);
        assert_eq!((m.rouge_l, m.exact_match), (Some(0.5), Some(0.3)));
    }
}
