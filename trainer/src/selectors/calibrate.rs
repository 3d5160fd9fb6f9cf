//! Temperature and novelty limit of a selector, from the newest task's validation rows alone, so that
//! a task can be added without older rows.

use super::lda::Form;
use super::{New, mapped};
use crate::run::Run;
use conpet_formats::Result;
use conpet_formats::bundle::manifest::SelectorEntry;
use conpet_formats::decimal::Decimal;
use conpet_formats::head::log_softmax;
use conpet_formats::novelty::Novelty;
use conpet_formats::selector::Decision;
use conpet_formats::tensors::TensorsWriter;
use conpet_runtime::select::Selector;

/// The whole payload, and the temperature: both found with the runtime's own decisions.
pub(super) fn calibrate(
    run: &Run<'_>,
    entry: &mut SelectorEntry,
    mut payload: TensorsWriter<'_>,
    class_task: &[i32],
    form: Form,
    new: &New<'_>,
) -> Result<(Vec<u8>, f32)> {
    let open = |limit: f32| Novelty::new(form.shift.clone(), form.form.clone(), limit);
    let mut trial = payload.clone();
    // At temperature 1, and refusing nothing.
    open(f32::from(half::f16::MAX)).write(&mut trial)?;
    entry.temperature = Decimal::from_f64(1.0);
    entry.threshold = Decimal::from_f64(0.0);
    let n_tasks = class_task.last().map_or(0, |t| *t as usize + 1);
    let selector = Selector::load(entry, Some(mapped(trial.finish()?)), n_tasks, run.engine.base.spec.hidden)?;
    let device = run.engine.cpu();
    let decisions = selector.decide(device, &new.valid.features, new.valid.inputs.iter().map(Vec::as_slice));
    let first = class_task.iter().position(|t| *t as usize + 1 == n_tasks).unwrap_or(0);
    let truth: Vec<usize> = new.valid.classes.iter().map(|c| first + c).collect();
    let rows: Vec<Vec<f32>> = decisions.iter().map(|d| d.class_log_posterior.clone()).collect();
    open(limit(&decisions, run.config.abstain)).write(&mut payload)?;
    Ok((payload.finish()?, best_temperature(&rows, &truth)))
}

/// The novelty that a part `share` of the rows exceeds. Fewer rows than can show such a part leave
/// as much room above the largest as lies between it and the middle.
fn limit(rows: &[Decision], share: f64) -> f32 {
    let mut all: Vec<f32> = rows.iter().map(|d| d.novelty).collect();
    all.sort_by(f32::total_cmp);
    let Some(largest) = all.last().copied() else { return f32::from(half::f16::MAX) };
    let n = all.len();
    let limit = if share * (n as f64) < 1.0 {
        largest + (largest - all[n / 2])
    } else {
        all[((n - 1) as f64 * (1.0 - share)).floor() as usize]
    };
    // What a payload may hold.
    limit.clamp(-f32::from(half::f16::MAX), f32::from(half::f16::MAX))
}

/// The temperature of a grid with the least cross-entropy.
pub fn best_temperature(rows: &[Vec<f32>], truth: &[usize]) -> f32 {
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
    use conpet_formats::selector::decide;

    #[test]
    fn temperature_softens_overconfident_scores() {
        // Scores of ±10 that are right three times in four want T near 20 / ln 3.
        let rows: Vec<Vec<f32>> = (0..100).map(|_| vec![10.0, -10.0]).collect();
        let truth: Vec<usize> = (0..100).map(|i| usize::from(i % 4 == 0)).collect();
        let t = best_temperature(&rows, &truth);
        assert!((t - 18.2).abs() < 2.5, "{t}");
    }

    #[test]
    fn the_limit_is_a_quantile_or_lies_above_few_rows() {
        let rows = |n: usize| -> Vec<Decision> {
            let one = decide(vec![0.0], &[0], 1, 1.0, 0.0);
            (0..n).map(|i| Decision { novelty: i as f32, ..one.clone() }).collect()
        };
        assert_eq!(limit(&rows(101), 0.05), 95.0);
        assert_eq!(limit(&rows(5), 0.05), 4.0 + 2.0);
        assert!(limit(&[], 0.05) > 6e4);
    }
}
