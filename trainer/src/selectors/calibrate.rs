//! Temperature and limits of a selector that cannot leave a row out again: from validation rows of all tasks, whose
//! features are kept in the bundle, so that they never follow the newest task alone.

use super::fitting::{Calibrated, Fit, class_task, describe, enter as enter_calibrated, feature_dim};
use super::sample::Sample;
use crate::services::Services;
use crate::services::temperature::best_temperature;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::mmap::Mapped;
use conpet_formats::ngrams::Words;
use conpet_formats::selector;
use conpet_formats::tensors::TensorsWriter;
use conpet_runtime::select::Selector;

/// Validation rows of a task that are kept.
const ROWS: usize = 160;

/// Calibrates on the runtime's own decisions, and enters the selector into the draft. `before` is what the bundle
/// carries so far, `carried` what it will.
pub(super) fn enter(
    services: &Services<'_>,
    draft: &mut Draft,
    new: &Fit<'_>,
    payload: TensorsWriter<'_>,
    mut carried: TensorsWriter<'_>,
    before: Option<&[u8]>,
) -> Result<()> {
    let dim = feature_dim(services);
    let task = class_task(draft);
    let first = task.iter().position(|t| *t as usize == new.task).unwrap_or(0);
    let mut sample = match before {
        Some(b) => Sample::read(b, dim, first, &[]).map_err(|e| e.in_section("selector sample"))?,
        None => None,
    }
    .unwrap_or_default();
    let classes: Vec<usize> = new.valid.classes.iter().map(|c| first + c).collect();
    sample.add(&new.valid.features, &classes, &[], ROWS, services.settings().training.seed);
    sample.write(&mut carried)?;
    describe(services, draft, new);
    let mut trial = payload.clone();
    trial.add_i32(selector::CLASS_TASK, &[task.len()], &task)?;
    let map = Mapped::from_vec(trial.finish()?);
    let whole = 0..map.len();
    let n_tasks = draft.manifest.tasks.len();
    let loaded = Selector::load(&draft.manifest.selector, Some((map, whole)), n_tasks, services.spec().hidden)?;
    let words = std::iter::repeat_n(Words::default(), sample.classes.len());
    let scores = loaded.scores(services.engine().cpu(), &sample.rows, words);
    let n = task.len();
    let rows: Vec<Vec<f32>> = scores.chunks_exact(n).map(<[f32]>::to_vec).collect();
    let mut novelties = vec![Vec::new(); n_tasks];
    for (row, class) in rows.iter().zip(&sample.classes) {
        let own = row.iter().zip(&task).filter(|(_, t)| **t == task[*class]).map(|(s, _)| *s);
        novelties[task[*class] as usize].push(-own.fold(f32::NEG_INFINITY, f32::max));
    }
    let temperature = f64::from(best_temperature(&rows, &sample.classes));
    enter_calibrated(services, draft, new, payload, carried, Calibrated { temperature, novelties })
}
