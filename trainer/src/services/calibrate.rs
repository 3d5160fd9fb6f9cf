//! What the newest head of a draft says, computed by the runtime from the bytes that will serve.

use super::Services;
use crate::data::Prepared;
use conpet_formats::bundle::Draft;
use conpet_formats::mmap::Mapped;
use conpet_formats::{Code, Error, Result};
use conpet_runtime::answer::Ask;
use conpet_runtime::blend::Blend;
use conpet_runtime::head::Head;
use conpet_runtime::module::Module;
use conpet_runtime::select::Selector;
use std::ops::Range;
use std::sync::Arc;

/// Prompts that are scored together.
const BATCH: usize = 16;

impl Services<'_> {
    /// Logits `[rows][classes]` of the newest head of a draft for some rows, with the newest task's module in force, computed
    /// by the runtime from the draft's own bytes.
    ///
    /// # Errors
    /// If the draft has no new head, or its payloads cannot be used.
    pub fn newest_logits(&self, draft: &Draft, data: &Prepared, rows: &[usize]) -> Result<Vec<Vec<f32>>> {
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
        let mut out = Vec::with_capacity(rows.len());
        for rows in rows.chunks(BATCH) {
            let trunked = data.trunked(rows, self.trunk());
            let ask = |input| Ask { trunked: &trunked, input, blend: &blend, head: &head };
            out.extend(self.engine.ask(&(0..rows.len()).map(ask).collect::<Vec<_>>()));
        }
        Ok(out)
    }

    /// The draft's selector, if it scores classes.
    ///
    /// # Errors
    /// If its payload cannot be used.
    pub fn draft_selector(&self, draft: &Draft) -> Result<Option<Selector>> {
        let m = &draft.manifest;
        let section = m.selector.section.filter(|_| m.selector.kind.scores_classes());
        let Some(bytes) = section.and_then(|s| draft.new_section(s)) else { return Ok(None) };
        Selector::load(&m.selector, Some(mapped(bytes)), m.tasks.len(), self.spec().hidden).map(Some)
    }
}

/// A payload as the runtime takes it: a map and a range.
fn mapped(payload: &[u8]) -> (Mapped, Range<usize>) {
    (Mapped::from_vec(payload.to_vec()), 0..payload.len())
}
