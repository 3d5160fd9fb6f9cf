//! Whether probabilities are what they say.

/// An answer's probability, and whether it was right.
pub type Sure = (f32, bool);

/// Bins of equal width.
const BINS: usize = 15;

/// The expected calibration error (Naeini et al. 2015; Guo et al. 2017): the mean distance, over bins of probability
/// and weighted by their rows, between the mean probability and the share that is right. `None` without rows.
pub fn expected_error(answers: &[Sure]) -> Option<f64> {
    let mut bins = [(0.0f64, 0.0f64); BINS];
    for (p, right) in answers {
        let bin = &mut bins[((f64::from(*p) * BINS as f64) as usize).min(BINS - 1)];
        bin.0 += f64::from(*p);
        bin.1 += f64::from(u8::from(*right));
    }
    let n = answers.len() as f64;
    (n > 0.0).then(|| bins.iter().map(|(p, right)| (p - right).abs()).sum::<f64>() / n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sure_answers_that_are_wrong_cost_what_they_claim() {
        let rows = |p: f32, right: usize, n: usize| (0..n).map(|i| (p, i < right)).collect::<Vec<Sure>>();
        assert_eq!(expected_error(&[]), None);
        assert!((expected_error(&rows(0.9, 9, 10)).unwrap() - 0.0).abs() < 1e-6);
        assert!((expected_error(&rows(1.0, 9, 10)).unwrap() - 0.1).abs() < 1e-6);
        // Two bins, one of them too sure and one not sure enough: errors do not cancel.
        let both = [rows(0.9, 8, 10), rows(0.5, 6, 10)].concat();
        assert!((expected_error(&both).unwrap() - 0.1).abs() < 1e-6);
    }
}
