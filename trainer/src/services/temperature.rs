//! The temperature of scores, from rows whose classes are known.

use conpet_formats::head::log_softmax;

/// The temperature, from a grid, that minimises the cross-entropy of the scores `rows [rows][classes]` with
/// their classes `truth` (Guo et al. 2017); 1 if there are no rows.
pub fn best_temperature(rows: &[Vec<f32>], truth: &[usize]) -> f32 {
    if rows.is_empty() {
        return 1.0;
    }
    let cost = |t: f32| -> f64 {
        rows.iter()
            .zip(truth)
            .map(|(r, c)| {
                let mut r = r.clone();
                log_softmax(&mut r, t);
                -f64::from(r[*c])
            })
            .sum()
    };
    let grid = (0..40).map(|i| 0.05 * 1.2f32.powi(i));
    grid.map(|t| (cost(t), t)).min_by(|a, b| a.0.total_cmp(&b.0)).map_or(1.0, |x| x.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_softens_overconfident_scores() {
        // Scores of ±10 that are right three times in four are calibrated at T near 20 / ln 3.
        let rows: Vec<Vec<f32>> = (0..100).map(|_| vec![10.0, -10.0]).collect();
        let truth: Vec<usize> = (0..100).map(|i| usize::from(i % 4 == 0)).collect();
        let t = best_temperature(&rows, &truth);
        assert!((t - 18.2).abs() < 2.5, "{t}");
    }
}
