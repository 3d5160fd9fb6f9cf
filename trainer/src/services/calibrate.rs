//! Calibration of a new head, on the task's validation rows and the bytes that will serve.

use super::Services;
use super::temperature::best_temperature;
use crate::data::Prepared;
use crate::fit::Examples;
use conpet_formats::bundle::Draft;
use conpet_formats::decimal::Decimal;
use conpet_formats::head::log_softmax;
use conpet_formats::mmap::Mapped;
use conpet_formats::{Code, Error, Result};
use conpet_runtime::answer::Ask;
use conpet_runtime::blend::Blend;
use conpet_runtime::head::{Head, join};
use conpet_runtime::module::Module;
use conpet_runtime::select::Selector;
use std::ops::Range;
use std::sync::Arc;

/// Prompts that are scored together.
const BATCH: usize = 16;

impl Services<'_> {
    /// Fits the newest head's temperature, and the weight of the selector's class posterior, on the task's
    /// validation rows, and writes both into the draft.
    ///
    /// # Errors
    /// If the draft's own payloads cannot be used.
    pub fn calibrate_head(&self, draft: &mut Draft, valid: &Prepared) -> Result<()> {
        let logits = self.newest_logits(draft, valid)?;
        let temperature = best_temperature(&logits, &valid.classes);
        let mut blend = 0.0;
        if let Some((selector, first)) = self.draft_selector(draft)? {
            let decisions = selector.decide(self.engine.cpu(), &valid.features, valid.inputs.iter().map(|p| p.words()));
            let classes = logits.first().map_or(0, Vec::len);
            let known: Vec<Option<usize>> = (0..classes).map(|c| Some(first + c)).collect();
            let cost = |b: f32| -> f64 {
                let row = |i: usize| {
                    let mut lp = join(&logits[i], temperature, b, Some(&decisions[i]), &known);
                    log_softmax(&mut lp, 1.0);
                    -f64::from(lp[valid.classes[i]])
                };
                (0..valid.len()).map(row).sum()
            };
            let grid = [0.0f32, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0];
            blend = grid.into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(0.0);
        }
        if let Some(h) = draft.manifest.heads.last_mut() {
            h.temperature = Decimal::from_f64(f64::from(temperature));
            h.blend = Decimal::from_f64(f64::from(blend));
        }
        Ok(())
    }

    /// Logits `[rows][classes]` of the newest head of a draft, with the newest task's module in force, computed
    /// by the runtime from the draft's own bytes.
    ///
    /// # Errors
    /// If the draft has no new head, or its payloads cannot be used.
    pub fn newest_logits(&self, draft: &Draft, data: &Prepared) -> Result<Vec<Vec<f32>>> {
        let m = &draft.manifest;
        let missing = || Error::new(Code::Missing, "the stage has no new task with a head");
        let payload = |section: u32| draft.new_section(section).map(mapped).ok_or_else(missing);
        let (task, entry) = m.tasks.last().zip(m.heads.last()).ok_or_else(missing)?;
        let head = Head::load(entry, m, payload(entry.section)?, self.spec())?;
        let module = task.module.map(|i| {
            let entry = &m.modules[i as usize];
            let (map, range) = payload(entry.section)?;
            Module::load(map, range, &m.target_sets[&entry.targets], &entry.pet()?, self.spec())
        });
        let blend = Blend::from(module.transpose()?.map(Arc::new));
        let mut out = Vec::with_capacity(data.len());
        for rows in (0..data.len()).collect::<Vec<_>>().chunks(BATCH) {
            let trunked = data.trunked(rows, self.trunk());
            let ask = |input| Ask { trunked: &trunked, input, blend: &blend, head: &head };
            out.extend(self.engine.ask(&(0..rows.len()).map(ask).collect::<Vec<_>>()));
        }
        Ok(out)
    }

    /// The draft's class-scoring selector and the first class of its newest task.
    fn draft_selector(&self, draft: &Draft) -> Result<Option<(Selector, usize)>> {
        let m = &draft.manifest;
        let section = m.selector.section.filter(|_| m.selector.kind.scores_classes());
        let Some(bytes) = section.and_then(|s| draft.new_section(s)) else { return Ok(None) };
        let selector = Selector::load(&m.selector, Some(mapped(bytes)), m.tasks.len(), self.spec().hidden)?;
        let first = selector.class_task().iter().position(|t| *t + 1 == m.tasks.len()).unwrap_or(0);
        Ok(Some((selector, first)))
    }
}

/// A payload as the runtime takes it: a map and a range.
fn mapped(payload: &[u8]) -> (Mapped, Range<usize>) {
    (Mapped::from_vec(payload.to_vec()), 0..payload.len())
}
