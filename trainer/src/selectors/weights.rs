//! Weights of several witnesses of a class, from rows that none of them has seen.
//!
//! The posterior is `softmax_c(Σ_k w_k s_k[c])`: a logarithmic pool of the witnesses' scores (Hinton 2002). The weights
//! `w_k >= 0` minimise the cross-entropy of the rows, in which every task counts the same, whatever its number of
//! rows, so that a later task cannot out-shout an earlier one.

use conpet_formats::head::log_softmax;

/// Scores of one row by one witness after another, `[witnesses][classes]`, and its class.
#[derive(Debug, Clone)]
pub struct Row {
    /// The witnesses' scores.
    pub scores: Vec<Vec<f32>>,
    /// The row's class.
    pub class: usize,
    /// Its share in the sum.
    pub weight: f64,
}

/// Steps of the descent; it converges in a few.
const STEPS: usize = 40;

/// The best weights, and the mean cross-entropy with them in nats.
///
/// Rows without an error would drive the weights to infinity. The truth is therefore held for a little less than
/// sure, `1 - 1 / (rows + 2)` (Platt 1999), the rest for spread over all classes.
///
/// # Panics
/// If rows differ in their number of witnesses.
pub fn fit(rows: &[Row]) -> (Vec<f64>, f64) {
    let witnesses = rows.first().map_or(0, |r| r.scores.len());
    if witnesses == 0 {
        return (Vec::new(), 0.0);
    }
    let doubt = 1.0 / (rows.len() as f64 + 2.0);
    // In units in which each witness's scores deviate by one, so that one step suits all weights.
    let unit: Vec<f64> = (0..witnesses).map(|k| 1.0 / deviation(rows, k).max(1e-9)).collect();
    let mut w = vec![1.0; witnesses];
    let mut at = derivatives(rows, &w, &unit, doubt);
    let mut damping = 1e-3;
    for _ in 0..STEPS {
        let free: Vec<usize> = (0..witnesses).filter(|k| w[*k] > 0.0 || at.slope[*k] < 0.0).collect();
        let Some(step) = newton(&at, &free, damping) else {
            damping *= 10.0;
            continue;
        };
        let mut next = w.clone();
        free.iter().zip(&step).for_each(|(k, s)| next[*k] = (next[*k] - s).max(0.0));
        let there = derivatives(rows, &next, &unit, doubt);
        if there.cost < at.cost {
            let gain = at.cost - there.cost;
            (w, at, damping) = (next, there, damping * 0.2);
            if gain < 1e-9 {
                break;
            }
        } else {
            damping = (damping * 8.0).max(1e-6);
            if damping > 1e6 {
                break;
            }
        }
    }
    (w.iter().zip(&unit).map(|(w, u)| w * u).collect(), at.cost)
}

/// Deviation of a witness's scores around each row's mean.
fn deviation(rows: &[Row], k: usize) -> f64 {
    let (mut sum, mut n) = (0.0, 0.0);
    for r in rows {
        let s = &r.scores[k];
        let mean = s.iter().map(|v| f64::from(*v)).sum::<f64>() / s.len() as f64;
        sum += s.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>();
        n += s.len() as f64;
    }
    (sum / f64::max(n, 1.0)).sqrt()
}

struct Derivatives {
    cost: f64,
    slope: Vec<f64>,
    /// `[witnesses, witnesses]`.
    curve: Vec<f64>,
}

fn derivatives(rows: &[Row], w: &[f64], unit: &[f64], doubt: f64) -> Derivatives {
    let n = w.len();
    let mut out = Derivatives { cost: 0.0, slope: vec![0.0; n], curve: vec![0.0; n * n] };
    let total: f64 = rows.iter().map(|r| r.weight).sum::<f64>().max(f64::MIN_POSITIVE);
    for r in rows {
        let classes = r.scores[0].len();
        let sum = |c: usize| (0..n).map(|k| w[k] * unit[k] * f64::from(r.scores[k][c])).sum::<f64>() as f32;
        let mut lp: Vec<f32> = (0..classes).map(sum).collect();
        log_softmax(&mut lp, 1.0);
        let share = r.weight / total;
        let (mut mean, mut product) = (vec![0.0; n], vec![0.0; n * n]);
        for (c, lp) in lp.iter().enumerate() {
            let (lp, even) = (f64::from(*lp), doubt / classes as f64);
            let truth = even + if c == r.class { 1.0 - doubt } else { 0.0 };
            out.cost -= share * truth * lp;
            let p = lp.exp();
            for i in 0..n {
                let si = unit[i] * f64::from(r.scores[i][c]);
                mean[i] += p * si;
                out.slope[i] -= share * truth * si;
                for j in 0..=i {
                    product[i * n + j] += p * si * unit[j] * f64::from(r.scores[j][c]);
                }
            }
        }
        for i in 0..n {
            out.slope[i] += share * mean[i];
            for j in 0..=i {
                out.curve[i * n + j] += share * (product[i * n + j] - mean[i] * mean[j]);
            }
        }
    }
    (0..n).for_each(|i| (0..i).for_each(|j| out.curve[j * n + i] = out.curve[i * n + j]));
    out
}

/// Newton's step for the free weights, damped; `None` if the system cannot be solved.
fn newton(at: &Derivatives, free: &[usize], damping: f64) -> Option<Vec<f64>> {
    let n = at.slope.len();
    let lower = free.iter().enumerate().flat_map(|(a, i)| {
        free[..=a]
            .iter()
            .map(move |j| at.curve[i * n + j] + if i == j { damping * (1.0 + at.curve[i * n + i]) } else { 0.0 })
    });
    let factor = super::solve::Cholesky::new(lower.collect(), free.len()).ok()?;
    let mut step: Vec<f64> = free.iter().map(|k| at.slope[*k]).collect();
    factor.solve(&mut step);
    Some(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// A witness that knows the class to some degree, one that knows nothing, and one that shouts.
    fn rows(n: usize, noise: f32) -> Vec<Row> {
        let mut rng = Stream::new(5, "w", 0);
        (0..n)
            .map(|i| {
                let class = i % 3;
                let mut scores = |signal: f32, noise: f32| -> Vec<f32> {
                    rng.symmetric(3, noise)
                        .iter()
                        .enumerate()
                        .map(|(c, v)| v + if c == class { signal } else { 0.0 })
                        .collect()
                };
                Row {
                    scores: vec![scores(1.0, noise), scores(0.0, 5.0), scores(100.0, 100.0 * noise)],
                    class,
                    weight: 1.0,
                }
            })
            .collect()
    }

    #[test]
    fn who_knows_is_heard_and_who_does_not_is_not() {
        let data = rows(600, 1.2);
        let (w, cost) = fit(&data);
        assert!(w[0] > 0.5 && w[1] < 0.05 && w[2] > 0.005 && cost < 0.8, "{w:?} {cost}");
        // No other weights are better.
        let unit = [1.0; 3];
        let doubt = 1.0 / 602.0;
        for k in 0..3 {
            for factor in [0.8, 1.2] {
                let mut other = w.clone();
                other[k] *= factor;
                assert!(derivatives(&data, &other, &unit, doubt).cost >= cost - 1e-9);
            }
        }
    }

    #[test]
    fn rows_without_an_error_leave_the_weights_finite() {
        let (w, _) = fit(&rows(12, 0.01));
        assert!(w.iter().all(|v| v.is_finite()) && w[0] < 50.0 && w[2] < 0.5, "{w:?}");
        assert_eq!(fit(&[]).0.len(), 0);
    }

    #[test]
    fn a_small_task_counts_as_much_as_a_large_one() {
        // Two tasks, of which the larger has a first witness that is wrong.
        let row = |right: bool, weight: f64| Row {
            scores: vec![if right { vec![2.0, 0.0] } else { vec![0.0, 2.0] }],
            class: 0,
            weight,
        };
        let by_rows: Vec<Row> = (0..100).map(|i| row(i < 10, 1.0)).collect();
        let by_tasks: Vec<Row> = (0..100).map(|i| row(i < 10, if i < 10 { 0.1 } else { 0.5 / 90.0 })).collect();
        assert!(fit(&by_rows).0[0] == 0.0 && fit(&by_tasks).0[0] > 0.1);
    }
}
