//! The published selector (Song et al. 2023, Dynamic ConPET): a LoRA of its own on the base and a T-way linear
//! head, trained on a mixture of new and old rows, uniform over tasks, with a step budget that does not depend
//! on the number of tasks. It needs the rows of all tasks so far.

use super::fitting::Fit;
use crate::data::Joined;
use crate::fit::{Examples, HEAD_BIAS, HEAD_WEIGHT, Mixture, Outcome, Target};
use crate::services::prepare::Split;
use crate::services::{Lesson, Services};
pub use crate::settings::NoSettings as Settings;
use conpet_formats::Result;
use conpet_formats::bundle::{Draft, SectionKind};
use conpet_formats::decimal::Decimal;
use conpet_formats::selector::{self, SelectorKind};
use conpet_formats::tensors::TensorsWriter;
use std::ops::Range;

/// Rows whose class is their task.
struct ByTask<'a> {
    rows: Joined<'a>,
    task: Vec<u32>,
    ranges: Vec<Vec<Range<usize>>>,
}

impl Examples for ByTask<'_> {
    fn len(&self) -> usize {
        self.task.len()
    }
    fn tokens(&self, i: usize) -> usize {
        self.rows.tokens(i)
    }
    fn states(&self, i: usize, out: &mut Vec<f32>) {
        self.rows.states(i, out);
    }
    fn target(&self, i: usize) -> Target {
        Target::Class(self.task[i])
    }
    fn ranges(&self, i: usize) -> Vec<Range<usize>> {
        self.ranges[i].clone()
    }
}

/// Trains the selector on all tasks so far.
pub(super) fn fit(services: &mut Services<'_>, _: &Settings, draft: &mut Draft, new: &Fit<'_>) -> Result<bool> {
    let t = new.task;
    if t == 0 {
        // With one task there is nothing to choose.
        draft.manifest.selector.kind = SelectorKind::Single;
        return Ok(true);
    }
    let sets = (0..=t).map(|i| services.prepare_bare(i, Split::Train)).collect::<Result<Vec<_>>>()?;
    let mut pools = Vec::new();
    let (mut task, mut ranges, mut at) = (Vec::new(), Vec::new(), 0);
    for (i, s) in sets.iter().enumerate() {
        pools.push(at..at + s.len());
        at += s.len();
        task.extend(std::iter::repeat_n(i as u32, s.len()));
        let parts = &services.head_feature().parts;
        ranges.extend(
            s.prompts.iter().map(|p| parts.iter().map(|x| x.pool.tokens(&p.text, &p.offsets)).collect::<Vec<_>>()),
        );
    }
    let rows = ByTask { rows: Joined::of(sets.iter().map(|s| (s, 0))), task, ranges };
    let name = format!("selector-{t}");
    let (steps, training) = (services.settings().budget(), &services.settings().training);
    let batches = Mixture { pools, batch: training.batch, steps, seed: training.seed, name: name.clone() };
    // The head grows: old rows are kept, the new one starts at zero.
    let before = &draft.manifest.selector;
    let start = before.module.and_then(|m| services.stored(m, before.section));
    let feature = services.head_feature().clone();
    let lesson = Lesson::new(&name, &rows, Some((&feature, t + 1)));
    let outcome = services.fit(&Lesson { batches: Some(&batches), start: start.as_ref(), ..lesson })?;
    let Outcome::Done(trained) = outcome else { return Ok(false) };
    let old = draft.manifest.selector.module.take();
    let module = match old {
        // The selector's module is replaced, not added again.
        Some(m) => services.replace_module(draft, m, &trained, services.module(), "selector")?,
        None => services.add_module(draft, &trained, services.module(), "selector")?,
    };
    let dim = feature.dim(services.spec().hidden);
    let (weight, bias) = (&trained.tensors[HEAD_WEIGHT].1, &trained.tensors[HEAD_BIAS].1);
    let mut w = TensorsWriter::new();
    w.add_f32(selector::WEIGHT, &[t + 1, dim], weight)?;
    w.add_f32(selector::BIAS, &[t + 1], bias)?;
    let section = draft.add_section(SectionKind::Selector, w.finish()?);
    let s = &mut draft.manifest.selector;
    s.kind = SelectorKind::Conpet;
    (s.module, s.section, s.feature) = (Some(module), Some(section), Some(feature));
    s.top_k = new.common.top_k;
    s.margin = Decimal::from_f64(new.common.margin);
    services.account(&trained);
    Ok(true)
}
