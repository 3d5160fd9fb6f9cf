//! Compares features for the selector before training, by fitting closed-form selectors on each.
//!
//! One pass over the rows reads every layer and pooling that any candidate names; each candidate
//! is then fitted on the training rows and scored on the validation rows, never on test rows.

use crate::data::{Plan, Prepared};
use crate::selectors::{Counts, Stats, lda};
use crate::services::module::feature;
use crate::services::prepare::{Split, bare};
use crate::settings::automatic::Trunk;
use crate::stream::{self, Task};
use conpet_formats::Result;
use conpet_formats::feature::{FeatureSpec, StateNorm};
use conpet_formats::mmap::Mapped;
use conpet_formats::ngrams::{Ngrams, Table};
use conpet_formats::quant::QuantType;
use conpet_formats::tensors::TensorsWriter;
use conpet_runtime::engine::Engine;
use conpet_runtime::prompt::Prompt;
use conpet_runtime::sampler::argmax;
use serde::Serialize;
use std::sync::Arc;

/// Results of one feature on the validation rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probe {
    /// The feature, as `--selector-feature` takes it.
    pub feature: String,
    /// Length of the feature.
    pub dim: usize,
    /// Shrinkage of the covariance.
    pub shrinkage: f64,
    /// Weight of the token n-grams beside the feature.
    pub ngram_weight: f64,
    /// Fraction of rows whose class is right, among the classes of all tasks.
    pub classes: f64,
    /// Fraction of rows whose task is right, being the task of the chosen class.
    pub routing: f64,
}

/// What to try, in all combinations.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Features, as `--selector-feature` takes them.
    pub features: &'a [String],
    /// Shrinkages of the covariance.
    pub shrinkages: &'a [f64],
    /// Weights of the token n-grams.
    pub ngram_weights: &'a [f64],
}

/// Features of one split of all tasks.
struct Features {
    /// All parts that any candidate reads, `[rows, parts · hidden]`.
    features: Vec<f32>,
    /// Class of each row, counted over all tasks.
    classes: Vec<usize>,
    /// The rows themselves.
    inputs: Vec<Arc<Prompt>>,
}

/// Probes every feature with every shrinkage and every weight of the token n-grams.
///
/// # Errors
/// If a feature is malformed, a covariance is singular, or a task has no validation rows.
pub fn probe(
    engine: &Engine,
    tasks: &[Task],
    max_len: usize,
    wanted: &Wanted<'_>,
    tick: &mut dyn FnMut(&str),
) -> Result<Vec<Probe>> {
    stream::need_valid(tasks, "probe")?;
    let spec = &engine.base.spec;
    let trunk = Trunk::Third.layers(spec.n_layer);
    let parse = |f: &String| feature(f, StateNorm::Rms, spec, trunk);
    let parsed = wanted.features.iter().map(parse).collect::<Result<Vec<_>>>()?;
    let mut union = FeatureSpec { norm: parsed[0].norm, parts: Vec::new() };
    for part in parsed.iter().flat_map(|f| &f.parts) {
        if !union.parts.contains(part) {
            union.parts.push(part.clone());
        }
    }
    let [train, valid] = [Split::Train, Split::Valid].map(|split| read(engine, tasks, max_len, &union, split, tick));
    let (train, valid) = (train?, valid?);
    let class_task: Vec<usize> =
        tasks.iter().enumerate().flat_map(|(t, task)| std::iter::repeat_n(t, task.classes())).collect();
    let mut counts = Counts::new(Table::Tokens);
    counts.grow(class_task.len());
    train.inputs.iter().zip(&train.classes).for_each(|(p, c)| counts.add(&Table::Tokens.grams(p.words()), *c));
    let mut w = TensorsWriter::new();
    counts.write(1.0, &mut w)?;
    let map = Mapped::from_vec(w.finish()?);
    let whole = 0..map.len();
    let ngrams = Ngrams::load(Table::Tokens, &map, whole, class_task.len())?;
    let likelihood = |p: &Arc<Prompt>| {
        let mut s = vec![0.0; class_task.len()];
        if let Some(n) = &ngrams {
            n.add_scores(p.words(), &mut s);
        }
        s
    };
    let likelihoods: Vec<Vec<f32>> = valid.inputs.iter().map(likelihood).collect();
    let mut out = Vec::new();
    for (name, feature) in wanted.features.iter().zip(&parsed) {
        tick(name);
        let columns: Vec<usize> =
            feature.parts.iter().filter_map(|p| union.parts.iter().position(|u| u == p)).collect();
        let take = |s: &Features| -> Vec<f32> {
            let rows = s.features.chunks_exact(union.dim(spec.hidden));
            rows.flat_map(|r| columns.iter().flat_map(|c| &r[c * spec.hidden..(c + 1) * spec.hidden]))
                .copied()
                .collect()
        };
        let dim = feature.dim(spec.hidden);
        let mut stats = Stats::new(dim);
        stats.grow(class_task.len());
        stats.add(&take(&train), &train.classes);
        let x = take(&valid);
        for shrinkage in wanted.shrinkages {
            let scores = lda::solve(&stats, *shrinkage)?;
            let rows: Vec<Vec<f32>> = x.chunks_exact(dim).map(|x| scores.of(x)).collect();
            for weight in wanted.ngram_weights {
                let join = |(s, n): (&Vec<f32>, &Vec<f32>)| -> usize {
                    let sum: Vec<f32> = s.iter().zip(n).map(|(s, n)| s + *weight as f32 * n).collect();
                    argmax(&sum) as usize
                };
                let best: Vec<usize> = rows.iter().zip(&likelihoods).map(join).collect();
                let part = |right: &dyn Fn(usize, usize) -> bool| {
                    let n = best.iter().zip(&valid.classes).filter(|(b, c)| right(**b, **c)).count();
                    n as f64 / best.len().max(1) as f64
                };
                out.push(Probe {
                    feature: name.clone(),
                    dim,
                    shrinkage: *shrinkage,
                    ngram_weight: *weight,
                    classes: part(&|b, c| b == c),
                    routing: part(&|b, c| class_task[b] == class_task[c]),
                });
            }
        }
    }
    Ok(out)
}

fn read(
    engine: &Engine,
    tasks: &[Task],
    max_len: usize,
    union: &FeatureSpec,
    split: Split,
    tick: &mut dyn FnMut(&str),
) -> Result<Features> {
    let plan = Plan { trunk: 0, selector: Some(union), head: None, max_len, says_labels: false, keep: QuantType::F32 };
    let (mut all, mut first) = (Features { features: Vec::new(), classes: Vec::new(), inputs: Vec::new() }, 0);
    for t in tasks {
        tick(&format!("{} {}", t.name, split.name()));
        let (task, rows) = bare(t, split);
        let p = Prepared::new(engine, &task, &rows, plan, None, &mut |_| {})?;
        all.features.extend(p.features);
        all.inputs.extend(p.inputs);
        all.classes.extend(p.classes.iter().map(|c| first + c));
        first += t.classes();
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Goal, Row};
    use conpet_formats::bundle::manifest::TaskKind;

    fn task(name: &str, words: [&str; 2]) -> Task {
        let rows = |n: usize| {
            (0..n)
                .map(|i| Row {
                    text: format!("{} the {} {i}", words[i % 2], ["list", "number"][i / 2 % 2]),
                    goal: Goal::Label(words[i % 2].into()),
                    chat: Vec::new(),
                })
                .collect()
        };
        Task {
            name: name.into(),
            kind: TaskKind::Classification,
            labels: words.map(String::from).to_vec(),
            template: conpet_formats::template::INPUT.into(),
            max_answer: 0,
            train: rows(40),
            valid: rows(12),
            test: Vec::new(),
            digest: String::new(),
            metric: crate::metrics::Metric::Accuracy,
        }
    }

    #[test]
    fn a_telling_feature_scores_higher_than_a_blind_one() {
        let e = crate::decoder::tests::engine();
        let tasks = [task("a", ["show", "open"]), task("b", ["water", "oil"])];
        let features = ["2:mean", "0:last"].map(String::from);
        let wanted = Wanted { features: &features, shrinkages: &[0.1, 0.3], ngram_weights: &[0.0] };
        let got = probe(&e, &tasks, 256, &wanted, &mut |_| {}).unwrap();
        assert_eq!(got.len(), 4);
        assert_eq!((got[0].feature.as_str(), got[0].dim, got[3].shrinkage), ("2:mean", e.base.spec.hidden, 0.3));
        // The last token is a number, which says nothing about the task.
        assert!(got[0].routing > 0.9 && got[2].routing < 0.8, "{got:?}");
    }
}
