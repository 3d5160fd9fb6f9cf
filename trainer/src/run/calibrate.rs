//! Calibration of a new head, on the task's validation rows and the bytes that will serve.

use super::Run;
use crate::data::Prepared;
use crate::fit::Examples;
use crate::selectors::best_temperature;
use conpet_formats::bundle::{Bundle, Draft, SectionKind};
use conpet_formats::decimal::Decimal;
use conpet_formats::head::log_softmax;
use conpet_formats::mmap::Mapped;
use conpet_formats::{Code, Error, Result};
use conpet_runtime::engine::answer::Ask;
use conpet_runtime::head::join;
use conpet_runtime::skills::Skills;

impl Run<'_> {
    /// Fits the newest head's temperature, and how much of the selector's own class posterior to
    /// join in, on the task's validation rows. Written into the draft.
    ///
    /// # Errors
    /// If the draft's own payloads cannot be used.
    pub fn calibrate_head(&self, draft: &mut Draft, valid: &Prepared) -> Result<()> {
        // The stage as it will be, in a file of its own: calibration runs what will serve.
        let trial = self.work.join("calibrate.cpb");
        let _ = std::fs::remove_file(&trial);
        let copy = self.trial(draft)?;
        copy.create(&trial)?;
        let skills = Skills::new(Bundle::open(&trial)?, &self.engine.base)?;
        let entry = &skills.manifest().tasks[0];
        let head = skills.head(entry.head.unwrap_or(0) as usize)?;
        let blend = skills.blend(entry)?;
        let mut logits = Vec::new();
        let device = self.engine.cpu();
        let all: Vec<usize> = (0..valid.len()).collect();
        for rows in all.chunks(16) {
            let trunked = valid.trunked(rows, self.decoder.first);
            let ask = |input| Ask { trunked: &trunked, input, blend: &blend, head: &head };
            logits.extend(self.engine.ask(&(0..rows.len()).map(ask).collect::<Vec<_>>()));
        }
        let temperature = best_temperature(&logits, &valid.classes);
        let mut blend = 0.0;
        if let Some((selector, first)) = self.draft_selector(draft)? {
            let decisions = selector.decide(device, &valid.features, valid.inputs.iter().map(Vec::as_slice));
            let known: Vec<Option<usize>> = (0..head.classes.len()).map(|c| Some(first + c)).collect();
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
        let _ = std::fs::remove_file(&trial);
        if let Some(h) = draft.manifest.heads.last_mut() {
            h.temperature = Decimal::from_f64(f64::from(temperature));
            h.blend = Decimal::from_f64(f64::from(blend));
        }
        Ok(())
    }

    /// A bundle of the newest task alone.
    fn trial(&self, draft: &Draft) -> Result<Draft> {
        let m = &draft.manifest;
        let mut out = Draft::new(m.base.clone(), &m.method, m.trunk);
        let missing = || Error::new(Code::Missing, "the stage has no task to calibrate");
        let mut task = m.tasks.last().ok_or_else(missing)?.clone();
        let mut head = m.heads.last().ok_or_else(missing)?.clone();
        head.section =
            out.add_section(SectionKind::Head, draft.new_section(head.section).ok_or_else(missing)?.to_vec());
        (head.id, head.tasks) = ("h0000".into(), vec![0]);
        if let Some(i) = task.module {
            let mut module = m.modules[i as usize].clone();
            let bytes = draft.new_section(module.section).ok_or_else(missing)?.to_vec();
            module.section = out.add_section(SectionKind::Module, bytes);
            module.id = "m0000".into();
            out.manifest.target_sets.insert(module.targets.clone(), m.target_sets[&module.targets].clone());
            out.manifest.modules.push(module);
        }
        (task.id, task.stage, task.head) = (0, 1, Some(0));
        task.module = task.module.map(|_| 0);
        out.manifest.heads.push(head);
        out.manifest.tasks.push(task);
        Ok(out)
    }

    /// The draft's class-scoring selector and the first class of its newest task.
    fn draft_selector(&self, draft: &Draft) -> Result<Option<(conpet_runtime::select::Selector, usize)>> {
        let m = &draft.manifest;
        let Some(bytes) =
            m.selector.section.filter(|_| m.selector.kind.scores_classes()).and_then(|s| draft.new_section(s))
        else {
            return Ok(None);
        };
        let map = Mapped::from_vec(bytes.to_vec());
        let range = 0..map.len();
        let hidden = self.engine.base.spec.hidden;
        let selector = conpet_runtime::select::Selector::load(&m.selector, Some((map, range)), m.tasks.len(), hidden)?;
        let first = selector.class_task().iter().position(|t| *t + 1 == m.tasks.len()).unwrap_or(0);
        Ok(Some((selector, first)))
    }
}
