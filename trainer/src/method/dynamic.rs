//! Dynamic ConPET (Song et al. 2023): a module and a head for each task, and a selector.
//!
//! Each module is trained on its own task's rows with full batches: with one routed module and
//! teacher forcing the published mixture gives old rows no gradient, so this is the same optimum
//! for half the work. The selector is closed-form by default; `--selector conpet` trains the
//! published one (a LoRA and a T-way head on a task-uniform mixture of new and old rows, with a
//! step budget that does not depend on the number of tasks).

use super::per_task;
use crate::data::{Joined, Prepared};
use crate::fit::{Examples, Mixture, Outcome, Target};
use crate::run::{Lesson, Run, Stage};
use crate::selectors::{Counts, Stats, lda, ridge};
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::bundle::{Draft, SectionKind};
use conpet_formats::decimal::Decimal;
use conpet_formats::head::log_softmax;
use conpet_formats::mmap::Mapped;
use conpet_formats::ngrams::Ngrams;
use conpet_formats::selector::{self, SelectorKind};
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::{Code, Error, Result};
use std::ops::Range;

/// One more task.
pub fn learn(run: &mut Run<'_>, stage: Stage) -> Result<Option<Draft>> {
    let (t, mut draft) = (stage.task, stage.draft);
    let Some(data) = per_task::module(run, &mut draft, t)? else { return Ok(None) };
    let valid = run.prepare_valid(t)?;
    let done = match run.config.selector.as_str() {
        "task" => true,
        "conpet" => conpet_selector(run, &mut draft, t)?,
        kind => closed_form(run, &mut draft, t, kind, &data, &valid).map(|()| true)?,
    };
    if !done {
        return Ok(None);
    }
    if run.tasks[t].kind == TaskKind::Classification {
        run.calibrate_head(&mut draft, &valid)?;
    }
    Ok(Some(draft))
}

/// Extends the statistics by the new task's rows and solves the selector anew: no old row is read.
fn closed_form(
    run: &Run<'_>,
    draft: &mut Draft,
    t: usize,
    kind: &str,
    train: &Prepared,
    valid: &Prepared,
) -> Result<()> {
    let dim = run.selector_feature.dim(run.engine.base.spec.hidden);
    let mut stats = match (draft.manifest.selector.stats, &run.bundle) {
        (Some(s), Some(b)) => {
            Stats::from_payload(b.section(s)?, dim).map_err(|e| e.in_section("selector statistics"))?
        }
        _ if t == 0 => Stats::new(dim),
        _ => {
            return Err(Error::new(Code::Missing, "the bundle's selector has no statistics to extend")
                .hint("it was made with another --selector; use the same one"));
        }
    };
    let first = stats.classes();
    stats.grow(run.tasks[t].classes());
    let numbers: Vec<usize> = train.classes.iter().map(|c| first + c).collect();
    stats.add(&train.features, &numbers);
    let scores = if kind == "ridge" {
        ridge::fit(&stats, run.config.shrinkage)?
    } else {
        lda::fit(&stats, run.config.shrinkage)?
    };
    let class_task: Vec<i32> = draft
        .manifest
        .tasks
        .iter()
        .flat_map(|task| std::iter::repeat_n(task.id as i32, task.labels.len().max(1)))
        .collect();
    let mut w = TensorsWriter::new();
    w.add_f32(selector::WEIGHT, &[class_task.len(), dim], &scores.weight)?;
    w.add_f32(selector::BIAS, &[class_task.len()], &scores.bias)?;
    w.add_i32(selector::CLASS_TASK, &[class_task.len()], &class_task)?;
    if let Some(mut counts) = earlier_ngrams(run, draft, t, kind)? {
        counts.grow(run.tasks[t].classes());
        train.inputs.iter().zip(&numbers).for_each(|(tokens, c)| counts.add(tokens, *c));
        counts.write(run.config.ngram_weight, &mut w)?;
    }
    let payload = w.finish()?;
    let map = Mapped::from_vec(payload.clone());
    let ngrams = Ngrams::load(&map, 0..payload.len(), class_task.len())?;
    let section = draft.add_section(SectionKind::Selector, payload);
    let statistics = draft.add_section(SectionKind::Stats, stats.payload()?);
    // Temperature and threshold come from the newest task's validation rows alone, so that adding
    // a task to a bundle needs no older rows.
    let rows: Vec<Vec<f32>> = valid
        .features
        .chunks_exact(dim)
        .zip(&valid.inputs)
        .map(|(x, tokens)| {
            let mut s = scores.of(x);
            if let Some(n) = &ngrams {
                n.add_scores(tokens, &mut s);
            }
            s
        })
        .collect();
    let truth: Vec<usize> = valid.classes.iter().map(|c| first + c).collect();
    let temperature = best_temperature(&rows, &truth);
    let mut best: Vec<f32> = rows
        .iter()
        .map(|r| {
            let mut r = r.clone();
            log_softmax(&mut r, temperature);
            r.into_iter().fold(f32::NEG_INFINITY, f32::max).exp()
        })
        .collect();
    best.sort_by(f32::total_cmp);
    let threshold =
        if class_task.len() > 1 { best[((best.len() - 1) as f64 * run.config.abstain) as usize] } else { 0.0 };
    let s = &mut draft.manifest.selector;
    s.kind = if kind == "ridge" { SelectorKind::Ridge } else { SelectorKind::Lda };
    s.feature = Some(run.selector_feature.clone());
    (s.section, s.stats) = (Some(section), Some(statistics));
    s.temperature = Decimal::from_f64(f64::from(temperature));
    s.threshold = Decimal::from_f64(f64::from(threshold.min(0.999)));
    s.margin = Decimal::from_f64(run.config.margin);
    s.top_k = run.config.top_k;
    Ok(())
}

/// What the selector so far has counted; `None` where it does not count: by setting, for ridge whose
/// scores are no log-likelihoods, or in a bundle that began without and whose rows are gone.
fn earlier_ngrams(run: &Run<'_>, draft: &Draft, t: usize, kind: &str) -> Result<Option<Counts>> {
    if kind != "lda" {
        return Ok(None);
    }
    match (draft.manifest.selector.section, &run.bundle) {
        (Some(s), Some(b)) => Counts::read(b.section(s)?).map_err(|e| e.in_section("selector")),
        _ => Ok((t == 0 && run.config.ngram_weight > 0.0).then(Counts::default)),
    }
}

/// The temperature of a grid with the least cross-entropy.
pub(crate) fn best_temperature(rows: &[Vec<f32>], truth: &[usize]) -> f32 {
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

/// Trains the published selector on all tasks so far; false if stopped.
fn conpet_selector(run: &mut Run<'_>, draft: &mut Draft, t: usize) -> Result<bool> {
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
    let rows = ByTask { rows: Joined::of(sets.iter().map(|s| (s, 0))), task, ranges };
    let name = format!("selector-{t}");
    let steps = run.config.budget();
    let batches = Mixture { pools, batch: run.config.batch, steps, seed: run.config.seed, name: name.clone() };
    // The head grows: old rows are kept, the new one starts at zero.
    let before = &draft.manifest.selector;
    let start = before.module.and_then(|m| run.stored(m, before.section));
    let feature = run.head_feature.clone();
    let lesson = Lesson::new(&name, &rows, Some((&feature, t + 1)));
    let outcome = run.fit(&Lesson { batches: Some(&batches), start: start.as_ref(), ..lesson })?;
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
    fn temperature_softens_overconfident_scores() {
        // Scores of ±10 that are right three times in four want T near 20 / ln 3.
        let rows: Vec<Vec<f32>> = (0..100).map(|_| vec![10.0, -10.0]).collect();
        let truth: Vec<usize> = (0..100).map(|i| usize::from(i % 4 == 0)).collect();
        let t = best_temperature(&rows, &truth);
        assert!((t - 18.2).abs() < 2.5, "{t}");
    }
}
