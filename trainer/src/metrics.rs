//! Figures of continual learning, from the matrix `R[t][s]`: accuracy on task s after stage t.

use serde::{Deserialize, Serialize};

/// Counts after one stage, one entry for each task of the stream; tasks not yet seen have no rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StageScores {
    /// Test rows of each task that were scored.
    pub rows: Vec<usize>,
    /// Answered right.
    pub right: Vec<usize>,
    /// Sent to the right task first.
    pub routed: Vec<usize>,
    /// Answered right when the task is named (the oracle router).
    pub oracle: Vec<usize>,
    /// `[true task][chosen task]`.
    pub confusion: Vec<Vec<usize>>,
}

/// The figures of a whole run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// `R[t][s]`; `None` for tasks that stage t was not scored on.
    pub matrix: Vec<Vec<Option<f64>>>,
    /// Mean over tasks of the last row ("average accuracy", macro).
    pub average_accuracy: f64,
    /// Right rows over all rows after the last stage ("whole accuracy", micro).
    pub whole_accuracy: f64,
    /// Mean over tasks but the last of (best accuracy at an earlier stage - last); Chaudhry et al. 2018.
    pub forgetting: Option<f64>,
    /// Mean over tasks but the last of `R[T][s] - R[s][s]`; Lopez-Paz & Ranzato 2017.
    pub bwt: Option<f64>,
    /// Mean over tasks but the first of `R[s-1][s] - b[s]`; 0 by construction where labels of a
    /// task are unknown before its stage (then also the untrained baseline b is 0).
    pub fwt: Option<f64>,
    /// Rows sent to the right task first.
    pub routing_accuracy: f64,
    /// Whole accuracy if the task were always known.
    pub oracle_accuracy: f64,
}

/// Computes the figures from the stages' counts.
pub fn metrics(stages: &[StageScores]) -> Metrics {
    let ratio = |a: usize, b: usize| (b > 0).then(|| a as f64 / b as f64);
    let matrix: Vec<Vec<Option<f64>>> =
        stages.iter().map(|s| s.right.iter().zip(&s.rows).map(|(r, n)| ratio(*r, *n)).collect()).collect();
    let Some((last, scores)) = matrix.last().zip(stages.last()) else { return Metrics::default() };
    let mean = |v: &[f64]| (!v.is_empty()).then(|| v.iter().sum::<f64>() / v.len() as f64);
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
            confusion: vec![],
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
    }
}
