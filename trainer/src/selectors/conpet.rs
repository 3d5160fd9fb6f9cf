//! The published selector (Song et al. 2023, Dynamic ConPET): a LoRA of its own on the base and a T-way
//! linear head, trained on a task-uniform mixture of new and old rows with a step budget that does
//! not depend on the number of tasks. It needs the rows of all tasks so far.

use super::New;
use crate::data::Joined;
use crate::fit::{Batches, Examples, Outcome, Target};
use crate::rng::Stream;
use crate::run::Run;
use conpet_formats::Result;
use conpet_formats::bundle::{Draft, SectionKind};
use conpet_formats::decimal::Decimal;
use conpet_formats::selector::{self, SelectorKind};
use conpet_formats::tensors::TensorsWriter;
use std::ops::Range;

/// Half new rows, half old ones drawn uniformly over tasks ("policy 2" of the published code).
#[derive(Debug)]
pub struct Replay {
    /// Rows of each old task, and last the new one's, as ranges of the joined rows.
    pub pools: Vec<Range<usize>>,
    /// Rows in a batch.
    pub batch: usize,
    /// Steps in all: the same for every task.
    pub steps: u64,
    /// Seed of the draws.
    pub seed: u64,
    /// Names the draws.
    pub name: String,
}

impl Batches for Replay {
    fn steps(&self) -> u64 {
        self.steps
    }

    fn rows(&self, step: u64) -> Vec<usize> {
        let mut rng = Stream::new(self.seed, &format!("{}/replay", self.name), step);
        let (new, old) = (&self.pools[self.pools.len() - 1], &self.pools[..self.pools.len() - 1]);
        let n_new = (self.batch / 2).max(1);
        let mut rows: Vec<usize> = (0..n_new).map(|_| new.start + rng.below(new.len())).collect();
        for _ in n_new..self.batch {
            let pool = &old[rng.below(old.len())];
            rows.push(pool.start + rng.below(pool.len()));
        }
        rng.shuffle(&mut rows);
        rows
    }
}

/// Rows labelled with their task.
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
pub(super) fn fit(run: &mut Run<'_>, draft: &mut Draft, new: &New<'_>) -> Result<bool> {
    let t = new.task;
    if t == 0 {
        // One task needs no choice.
        draft.manifest.selector.kind = SelectorKind::Single;
        return Ok(true);
    }
    let sets = (0..=t).map(|i| run.prepare_plain(i, "train")).collect::<Result<Vec<_>>>()?;
    let mut pools = Vec::new();
    let (mut task, mut ranges, mut at) = (Vec::new(), Vec::new(), 0);
    for (i, s) in sets.iter().enumerate() {
        pools.push(at..at + s.len());
        at += s.len();
        task.extend(std::iter::repeat_n(i as u32, s.len()));
        let parts = &run.head_feature.parts;
        ranges.extend(
            s.prompts.iter().map(|p| parts.iter().map(|x| x.pool.tokens(&p.text, &p.offsets)).collect::<Vec<_>>()),
        );
    }
    let rows = ByTask { rows: Joined(sets.iter().collect()), task, ranges };
    let name = format!("selector-{t}");
    let steps = run.config.epochs as u64 * (run.config.replay_limit * 4 / 5).max(1);
    let batches = Replay { pools, batch: run.config.batch, steps, seed: run.config.seed, name: name.clone() };
    // The head grows: old rows are kept, the new one starts at zero.
    let before = &draft.manifest.selector;
    let start = before.module.zip(before.section).and_then(|(m, s)| run.stored(m, s));
    let feature = run.head_feature.clone();
    let outcome = run.fit(&name, &rows, Some((&feature, t + 1)), Some(&batches), start.as_ref())?;
    let Outcome::Done(trained) = outcome else { return Ok(false) };
    let old = draft.manifest.selector.module.take();
    let module = match old {
        // The selector's module is replaced, not added again.
        Some(m) => run.replace_module(draft, m, &trained, "selector")?,
        None => run.add_module(draft, &trained, &run.sites, "selector")?,
    };
    let dim = feature.dim(run.engine.base.spec.hidden);
    let (weight, bias) = (&trained.tensors["head.weight"].1, &trained.tensors["head.bias"].1);
    let mut w = TensorsWriter::new();
    w.add_f32(selector::WEIGHT, &[t + 1, dim], weight)?;
    w.add_f32(selector::BIAS, &[t + 1], bias)?;
    let section = draft.add_section(SectionKind::Selector, w.finish()?);
    let s = &mut draft.manifest.selector;
    s.kind = SelectorKind::Conpet;
    (s.module, s.section, s.feature) = (Some(module), Some(section), Some(feature));
    s.top_k = run.config.top_k;
    s.margin = Decimal::from_f64(run.config.margin);
    run.account(&trained);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replay_is_half_new_and_task_uniform_at_constant_cost() {
        // Old tasks of very different size are drawn equally often.
        let r = Replay { pools: vec![0..10, 10..1010, 1010..1100], batch: 8, steps: 500, seed: 1, name: "x".into() };
        let mut counts = [0usize; 3];
        for s in 0..r.steps() {
            let rows = r.rows(s);
            assert_eq!(rows.len(), 8);
            assert_eq!(rows, r.rows(s), "the same step draws the same rows");
            rows.iter().for_each(|i| counts[r.pools.iter().position(|p| p.contains(i)).unwrap()] += 1);
        }
        assert_eq!(counts[2], 2000);
        assert!(counts[0].abs_diff(counts[1]) < 200, "{counts:?}");
    }
}
