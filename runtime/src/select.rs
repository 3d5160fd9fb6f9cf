//! Selection: from trunk features to weights over tasks.

use crate::error::{Code, Error, Result};
use crate::kernels::{Kernels, MatrixRef};
use crate::threads::Threads;
use conpet_formats::bundle::manifest::SelectorEntry;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::mmap::Mapped;
use conpet_formats::ngrams::Ngrams;
use conpet_formats::quant::QuantType;
use conpet_formats::selector::{self, Decision, SelectorKind};
use conpet_formats::tensors::{Dtype, Tensors};
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

/// Linear scores over classes: `weight [classes, dim]` in the map, `bias [classes]`.
#[derive(Debug, Clone)]
struct Scorer {
    map: Mapped,
    weight: Range<usize>,
    ty: QuantType,
    dim: usize,
    bias: Vec<f32>,
    class_task: Vec<usize>,
    /// A second opinion, from the tokens themselves.
    ngrams: Option<Ngrams>,
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
        let scorer = match (entry.kind, payload) {
            (SelectorKind::Task | SelectorKind::Single, _) => None,
            (kind, None) => {
                return Err(Error::new(Code::Missing, format!("a {} selector needs a section", kind.name())));
            }
            (kind, Some((map, range))) => {
                let feature = entry
                    .feature
                    .as_ref()
                    .ok_or_else(|| Error::new(Code::Missing, format!("a {} selector needs a feature", kind.name())))?;
                Some(Scorer::load(kind, map, range, n_tasks, feature.dim(hidden))?)
            }
        };
        Ok(Self {
            kind: entry.kind,
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

    /// Its kind.
    pub fn kind(&self) -> SelectorKind {
        self.kind
    }

    /// What it reads, if it reads anything.
    pub fn feature(&self) -> Option<&FeatureSpec> {
        self.feature.as_ref()
    }

    /// The module that must be in force while its feature is computed (`conpet`).
    pub fn module(&self) -> Option<usize> {
        self.module
    }

    /// Token n-grams it knows; 0 if it does not look at them.
    pub fn ngrams(&self) -> usize {
        self.scorer.as_ref().and_then(|s| s.ngrams.as_ref()).map_or(0, Ngrams::len)
    }

    /// The task of each class it scores.
    pub fn class_task(&self) -> &[usize] {
        self.scorer.as_ref().map_or(&[], |s| &s.class_task)
    }

    /// Decisions for features `[n, dim]` of inputs with these tokens; empty for the kinds that read
    /// nothing.
    pub fn decide<'t>(
        &self,
        (kernels, threads): (Kernels, &Threads),
        features: &[f32],
        tokens: impl IntoIterator<Item = &'t [u32]>,
    ) -> Vec<Decision> {
        let Some(s) = &self.scorer else { return Vec::new() };
        let (n, classes) = (features.len() / s.dim, s.bias.len());
        let mut scores = vec![0.0; n * classes];
        let weight = MatrixRef { ty: s.ty, rows: classes, cols: s.dim, data: &s.map[s.weight.clone()] };
        kernels.matmul(threads, weight, features, &mut scores, n);
        scores
            .chunks_exact(classes)
            .zip(tokens)
            .map(|(row, tokens)| {
                let mut row: Vec<f32> = row.iter().zip(&s.bias).map(|(x, b)| x + b).collect();
                if let Some(n) = &s.ngrams {
                    n.add_scores(tokens, &mut row);
                }
                selector::decide(row, &s.class_task, self.n_tasks, self.temperature, self.threshold)
            })
            .collect()
    }

    /// The tasks worth running for this decision: the best, or up to `top_k` where the margin is small.
    pub fn candidates<'d>(&self, decision: &'d Decision) -> &'d [usize] {
        let k = if decision.margin < self.margin { self.top_k } else { 1 };
        &decision.order[..k.min(decision.order.len())]
    }
}

impl Scorer {
    fn load(kind: SelectorKind, map: Mapped, range: Range<usize>, n_tasks: usize, dim: usize) -> Result<Self> {
        let base = map.as_ptr() as usize;
        let tensors = Tensors::parse(&map[range.clone()])?;
        let need = |name: &str| {
            tensors.get(name).ok_or_else(|| Error::new(Code::Missing, format!("the selector lacks tensor {name:?}")))
        };
        let (weight, bias) = (need(selector::WEIGHT)?, need(selector::BIAS)?);
        let classes = bias.shape.iter().product::<usize>();
        if classes == 0 || weight.shape != [classes, dim] || bias.shape != [classes] {
            return Err(Error::new(
                Code::Shape,
                format!(
                    "selector weight {:?} and bias {:?} do not fit features of {dim} numbers",
                    weight.shape, bias.shape
                ),
            ));
        }
        let ty = match weight.dtype {
            Dtype::F32 => QuantType::F32,
            Dtype::F16 => QuantType::F16,
            other => return Err(Error::new(Code::Type, format!("selector weight of dtype {other:?}"))),
        };
        let class_task: Vec<usize> = match kind {
            SelectorKind::Conpet => (0..classes).collect(),
            _ => {
                let t = need(selector::CLASS_TASK)?;
                if t.shape != [classes] {
                    return Err(Error::new(Code::Shape, format!("class_task of shape {:?}", t.shape)));
                }
                t.to_i32().iter().map(|v| usize::try_from(*v).unwrap_or(usize::MAX)).collect()
            }
        };
        if let Some(bad) = class_task.iter().find(|t| **t >= n_tasks) {
            return Err(Error::new(
                Code::Value,
                format!("a class belongs to task {bad}, but there are {n_tasks} tasks"),
            ));
        }
        let start = weight.data.as_ptr() as usize - base;
        let (weight_range, bias) = (start..start + weight.data.len(), bias.to_f32());
        let ngrams = Ngrams::load(&map, range, classes)?;
        Ok(Self { weight: weight_range, ty, dim, bias, class_task, ngrams, map })
    }
}
