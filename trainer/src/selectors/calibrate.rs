//! Temperature and novelty limit of a selector, from the newest task's validation rows alone, so that
//! a task can be added without older rows.

use crate::data::Prepared;
use crate::services::Services;
use crate::services::temperature::best_temperature;
use conpet_formats::Result;
use conpet_formats::bundle::manifest::SelectorEntry;
use conpet_formats::decimal::Decimal;
use conpet_formats::mmap::Mapped;
use conpet_formats::novelty::Novelty;
use conpet_formats::selector::Decision;
use conpet_formats::tensors::TensorsWriter;
use conpet_runtime::select::Selector;

/// What [`conpet_formats::novelty`] needs to know of the classes; empty if they are not Gaussians.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Form {
    /// The shifts `[classes]`.
    pub shift: Vec<f32>,
    /// The quadratic form `[classes (classes + 1) / 2]`.
    pub form: Vec<f32>,
}

/// Completes the payload and finds the temperature, both from the runtime's own decisions on validation rows,
/// of which a fraction `abstain` may be refused.
pub(super) fn calibrate(
    services: &Services<'_>,
    entry: &mut SelectorEntry,
    mut payload: TensorsWriter<'_>,
    class_task: &[i32],
    form: Form,
    (valid, abstain): (&Prepared, f64),
) -> Result<(Vec<u8>, f32)> {
    let open = |limit: f32| Novelty::new(form.shift.clone(), form.form.clone(), limit);
    let mut trial = payload.clone();
    // A trial at temperature 1 that refuses nothing.
    open(f32::from(half::f16::MAX)).write(&mut trial)?;
    entry.temperature = Decimal::from_f64(1.0);
    entry.threshold = Decimal::from_f64(0.0);
    let n_tasks = class_task.last().map_or(0, |t| *t as usize + 1);
    let map = Mapped::from_vec(trial.finish()?);
    let whole = 0..map.len();
    let selector = Selector::load(entry, Some((map, whole)), n_tasks, services.spec().hidden)?;
    let decisions = selector.decide(services.engine().cpu(), &valid.features, valid.inputs.iter().map(Vec::as_slice));
    let first = class_task.iter().position(|t| *t as usize + 1 == n_tasks).unwrap_or(0);
    let truth: Vec<usize> = valid.classes.iter().map(|c| first + c).collect();
    let rows: Vec<Vec<f32>> = decisions.iter().map(|d| d.class_log_posterior.clone()).collect();
    open(limit(&decisions, abstain)).write(&mut payload)?;
    Ok((payload.finish()?, best_temperature(&rows, &truth)))
}

/// The novelty that a fraction `share` of the rows exceeds. If there are too few rows for such a quantile, the
/// limit is as far above the largest novelty as that is above the median.
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
    // The range of F16, which the payload stores.
    limit.clamp(-f32::from(half::f16::MAX), f32::from(half::f16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpet_formats::selector::decide;

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
