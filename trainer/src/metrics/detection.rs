//! How well novelty separates inputs of no task from the tasks' own.

use serde::{Deserialize, Serialize};

/// Detection metrics of one stage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Rows of no task.
    pub rows: usize,
    /// Probability that a row of no task has a higher novelty than a row of the tasks; ties count half.
    pub auroc: f64,
    /// Fraction of the rows of no task that are accepted at the limit that accepts 95 % of the tasks' rows.
    pub fpr95: f64,
    /// Fraction of the rows of no task that the selector refuses.
    pub refused: f64,
    /// Fraction of the tasks' own rows that it refuses.
    pub refused_known: f64,
}

/// A row's novelty, and whether it is refused.
pub type Verdict = (f32, bool);

/// Computes the metrics; `None` if either side has no rows.
pub fn detection(known: &[Verdict], unknown: &[Verdict]) -> Option<Detection> {
    if known.is_empty() || unknown.is_empty() {
        return None;
    }
    let mut sorted: Vec<f32> = known.iter().map(|v| v.0).collect();
    sorted.sort_by(f32::total_cmp);
    let wins = |x: f32| {
        let (below, up_to) = (sorted.partition_point(|k| *k < x), sorted.partition_point(|k| *k <= x));
        (below + up_to) as f64 / 2.0
    };
    let n = unknown.len() as f64;
    let limit = sorted[((sorted.len() as f64 * 0.95).ceil() as usize).saturating_sub(1)];
    let share = |v: &[Verdict], f: &dyn Fn(&Verdict) -> bool| v.iter().filter(|x| f(x)).count() as f64 / v.len() as f64;
    Some(Detection {
        rows: unknown.len(),
        auroc: unknown.iter().map(|v| wins(v.0)).sum::<f64>() / (n * sorted.len() as f64),
        fpr95: share(unknown, &|v| v.0 <= limit),
        refused: share(unknown, &|v| v.1),
        refused_known: share(known, &|v| v.1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hand_computed_cases() {
        let of = |v: &[f32], limit: f32| -> Vec<Verdict> { v.iter().map(|x| (*x, *x > limit)).collect() };
        // Of 4 x 2 pairs, the unknown rows win 3 and 3.5 (one tie counts half): 6.5 of 8.
        let d = detection(&of(&[1.0, 2.0, 3.0, 5.0], 4.0), &of(&[4.0, 5.0], 4.0)).unwrap();
        assert_eq!((d.auroc, d.refused, d.refused_known, d.rows), (6.5 / 8.0, 0.5, 0.25, 2));
        // 95 % of twenty rows are nineteen: the limit is the nineteenth, 18.
        let known: Vec<f32> = (0..20).map(|i| i as f32).collect();
        let d = detection(&of(&known, 99.0), &of(&[17.0, 18.0, 18.5, 30.0], 99.0)).unwrap();
        assert_eq!(d.fpr95, 0.5);
        assert_eq!(detection(&of(&known, 0.0), &of(&[99.0], 0.0)).unwrap().auroc, 1.0);
        assert_eq!(detection(&[], &of(&[1.0], 0.0)), None);
    }
}
