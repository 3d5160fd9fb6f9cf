//! The selector: from features of the input to weights over tasks.

use crate::cpu::Cpu;
use crate::error::{Code, Error, Result};
use crate::kernels::MatrixRef;
use conpet_formats::bundle::manifest::SelectorEntry;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::hidden::Hidden;
use conpet_formats::mmap::Mapped;
use conpet_formats::ngrams::{Ngrams, Words};
use conpet_formats::novelty::Root;
use conpet_formats::quant::QuantType;
use conpet_formats::refusal::Refusal;
use conpet_formats::selector::{self, Decision, Scorer, SelectorKind};
use std::ops::Range;

/// A loaded selector.
#[derive(Debug, Clone)]
pub struct Selector {
    kind: SelectorKind,
    feature: Option<FeatureSpec>,
    scorer: Option<Scorer>,
    /// The selector's own LoRA, an index into the bundle's modules.
    module: Option<usize>,
    n_tasks: usize,
    temperature: f32,
    threshold: f32,
    margin: f32,
    top_k: usize,
}

impl Selector {
    /// Loads a selector; `payload` is its section's range of `map`, if it has one.
    ///
    /// # Errors
    /// If the payload lacks a tensor, or shapes, tasks or feature width do not agree.
    pub fn load(
        entry: &SelectorEntry,
        payload: Option<(Mapped, Range<usize>)>,
        n_tasks: usize,
        hidden: usize,
    ) -> Result<Self> {
        let kind = entry.kind;
        let scorer = match payload.filter(|_| kind.reads()) {
            None if kind.reads() => {
                return Err(Error::new(Code::Missing, format!("a {} selector needs a section", kind.name())));
            }
            None => None,
            Some((map, range)) => {
                let feature = entry
                    .feature
                    .as_ref()
                    .ok_or_else(|| Error::new(Code::Missing, format!("a {} selector needs a feature", kind.name())))?;
                Some(Scorer::load(kind, map, range, n_tasks, feature.dim(hidden))?)
            }
        };
        Ok(Self {
            kind,
            feature: entry.feature.clone(),
            scorer,
            module: entry.module.map(|m| m as usize),
            n_tasks,
            temperature: entry.temperature.to_f64() as f32,
            threshold: entry.threshold.to_f64() as f32,
            margin: entry.margin.to_f64() as f32,
            top_k: entry.top_k.max(1) as usize,
        })
    }

    /// The selector's kind.
    pub fn kind(&self) -> SelectorKind {
        self.kind
    }

    /// The feature that it reads, if any.
    pub fn feature(&self) -> Option<&FeatureSpec> {
        self.feature.as_ref()
    }

    /// The module that must be in force while its feature is computed (`conpet`).
    pub fn module(&self) -> Option<usize> {
        self.module
    }

    /// Number of n-grams it knows; 0 if it does not use them.
    pub fn ngrams(&self) -> usize {
        self.scorer.iter().flat_map(|s| &s.ngrams).map(Ngrams::len).sum()
    }

    /// The class and its posterior by the n-grams alone, if they are sure enough to answer ([`selector::Fast`]).
    pub fn fast(&self, words: Words<'_>) -> Option<(usize, f32)> {
        let s = self.scorer.as_ref()?;
        let fast = s.fast?;
        let mut scores = vec![0.0; s.bias.len()];
        for n in &s.ngrams {
            n.add_scores(words, &mut scores);
        }
        Some(fast.best(scores)).filter(|(_, p)| *p >= fast.threshold)
    }

    /// Whether its n-grams may answer alone.
    pub fn has_fast(&self) -> bool {
        self.scorer.as_ref().is_some_and(|s| s.fast.is_some())
    }

    /// The limits beyond which it refuses an input, if it has any.
    pub fn refusal(&self) -> Option<&Refusal> {
        self.scorer.as_ref()?.refusal.as_ref()
    }

    /// The task of each class it scores.
    pub fn class_task(&self) -> &[usize] {
        self.scorer.as_ref().map_or(&[], |s| &s.class_task)
    }

    /// True if it chooses from the input; false if the caller must name the task or there is nothing to choose.
    pub fn chooses(&self) -> bool {
        self.scorer.is_some() || self.kind == SelectorKind::Uniform
    }

    /// Decisions for `n` inputs with features `[n, dim]` and these words; empty if it does not choose
    /// ([`Selector::chooses`]).
    pub fn decide<'t>(&self, cpu: &Cpu, features: &[f32], words: impl IntoIterator<Item = Words<'t>>) -> Vec<Decision> {
        let Some(s) = &self.scorer else {
            let uniform = |_| Decision::uniform(self.n_tasks);
            return words.into_iter().filter(|_| self.chooses()).map(uniform).collect();
        };
        states(s, cpu, features)
            .chunks_exact(s.bias.len())
            .zip(features.chunks_exact(s.dim))
            .zip(words)
            .map(|((states, feature), words)| {
                let mut scores = states.to_vec();
                let background = s.ngrams.iter().map(|n| n.add_scores(words, &mut scores)).sum();
                let earlier = s.novelty.as_ref().map(|n| (n.of(states, &scores, background), n.limit()));
                let novelties = s.refusal.as_ref().map(|r| (r, self.novelties(s, cpu, states, &scores, feature)));
                let mut d = selector::decide(scores, &s.class_task, self.n_tasks, self.temperature, self.threshold);
                if let Some((refusal, novelties)) = novelties {
                    let (p, refused) = refusal.verdict(&novelties);
                    d.novelty = novelties.iter().copied().fold(f32::INFINITY, f32::min);
                    (d.p_value, d.abstain) = (Some(p), refused);
                } else if let Some((value, limit)) = earlier {
                    (d.novelty, d.abstain) = (value, value > limit);
                }
                d
            })
            .collect()
    }

    /// Scores `[n, classes]` of `n` inputs, before the temperature; empty if it scores nothing.
    pub fn scores<'t>(&self, cpu: &Cpu, features: &[f32], words: impl IntoIterator<Item = Words<'t>>) -> Vec<f32> {
        let Some(s) = &self.scorer else { return Vec::new() };
        let mut out = states(s, cpu, features);
        for (row, words) in out.chunks_exact_mut(s.bias.len()).zip(words) {
            for n in &s.ngrams {
                n.add_scores(words, row);
            }
        }
        out
    }

    /// How unlike each task an input is: by angle where there is a space for it, else minus the task's best score.
    fn novelties(&self, s: &Scorer, cpu: &Cpu, states: &[f32], scores: &[f32], feature: &[f32]) -> Vec<f32> {
        if let Some(root) = &s.root {
            return root.novelties(states, length(root, cpu, feature), &s.class_task, self.n_tasks);
        }
        let mut out = vec![f32::MAX; self.n_tasks];
        scores.iter().zip(&s.class_task).for_each(|(score, t)| out[*t] = out[*t].min(-score));
        out
    }

    /// The tasks to run for this decision: the best, or up to `top_k` if the margin is small; all for `uniform`.
    pub fn candidates<'d>(&self, decision: &'d Decision) -> &'d [usize] {
        let k = match self.kind {
            SelectorKind::Uniform => self.n_tasks,
            _ if decision.margin < self.margin => self.top_k,
            _ => 1,
        };
        &decision.order[..k.min(decision.order.len())]
    }
}

/// Scores `[n, classes]` of features `[n, dim]`, before the n-grams' scores are added.
fn states(s: &Scorer, cpu: &Cpu, features: &[f32]) -> Vec<f32> {
    let (n, classes) = (features.len() / s.dim, s.bias.len());
    let layer = s.hidden.as_ref().map(|h| through(h, cpu, features));
    let x = layer.as_deref().unwrap_or(features);
    let mut scores = vec![0.0; n * classes];
    let weight = MatrixRef { ty: s.ty, rows: classes, cols: x.len() / n.max(1), data: &s.map[s.weight.clone()] };
    cpu.matmul(weight, x, &mut scores, n);
    scores.chunks_exact_mut(classes).for_each(|row| row.iter_mut().zip(&s.bias).for_each(|(x, b)| *x += b));
    scores
}

/// `|L⁻¹ (x - μ)|` of a feature.
fn length(root: &Root, cpu: &Cpu, feature: &[f32]) -> f32 {
    let x: Vec<f32> = feature.iter().zip(&root.mean).map(|(x, m)| x - m).collect();
    let mut whitened = vec![0.0; x.len()];
    for (rows, cols, data) in root.panels() {
        let weight = MatrixRef { ty: QuantType::F16, rows: rows.len(), cols, data };
        cpu.matmul(weight, &x[..cols], &mut whitened[rows], 1);
    }
    (whitened.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>()).sqrt() as f32
}

/// Passes features `[n, dim]` through a hidden layer; returns `[n, size]`.
///
/// # Panics
/// If the features have another width than the layer.
pub fn through(layer: &Hidden, cpu: &Cpu, features: &[f32]) -> Vec<f32> {
    let n = features.len() / layer.dim;
    let mut out = vec![0.0; n * layer.size()];
    let weight = MatrixRef { ty: QuantType::F32, rows: layer.size(), cols: layer.dim, data: &layer.weight };
    cpu.matmul(weight, features, &mut out, n);
    layer.activate(&mut out);
    out
}
