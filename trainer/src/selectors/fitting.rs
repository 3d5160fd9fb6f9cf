//! The common part of selectors: the settings that several of them read, the statistics or the memory that they
//! continue from, and the entry in the stage.

use super::calibrate::{self, Form};
use super::stats::Stats;
use crate::data::Prepared;
use crate::services::{Services, module};
use crate::settings::range::{any, at_least_one, part};
use crate::settings::settings;
use conpet_formats::bundle::{Draft, SectionKind};
use conpet_formats::decimal::Decimal;
use conpet_formats::feature::{FeatureSpec, StateNorm};
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::selector::{self, SelectorKind};
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::{Code, Error, Result};

settings! { "Selector" Settings Flags {
    /// The selector, which chooses the task: lda, ridge, centroid (closed forms); linear, mlp (trained on a
    /// small memory of features); conpet (a module and a T-way head of its own, trained with replay); uniform
    /// (all modules run); task (named by the caller).
    selector: String = SelectorKind::Lda.name().into(), any();
    /// The feature that the selector reads, in the same form as head-feature; auto is trunk:mean, and last:mean
    /// on an encoder, whose last states are made to be pooled.
    selector_feature: String = "auto".into(), any();
    /// Most candidate modules to run if the selector is unsure.
    top_k: u32 = 2, at_least_one();
    /// The selector is unsure if the margin between its two best tasks is below this.
    margin: f64 = 0.5, part();
    /// Fraction of a task's validation rows that the selector may refuse as unlike any task.
    abstain: f64 = 0.01, part();
    /// lda, centroid: shrinkage of the covariance, from 0 to 1; ridge: strength of the regularisation.
    shrinkage: f64 = 0.05, part();
    /// linear, mlp: rows of each class whose features are remembered.
    selector_memory: usize = 20, at_least_one();
    /// linear, mlp: training steps for each task.
    selector_steps: u64 = 400, at_least_one();
}}

impl Settings {
    /// The feature that the selector reads.
    ///
    /// # Errors
    /// If `--selector-feature` is malformed, or the base lacks a layer it reads.
    pub fn feature(&self, spec: &ModelSpec, trunk: usize) -> Result<FeatureSpec> {
        let text = match self.selector_feature.as_str() {
            "auto" if spec.causal => "trunk:mean",
            "auto" => "last:mean",
            text => text,
        };
        module::feature(text, StateNorm::Rms, spec, trunk)
    }
}

/// A request to fit a selector after a task was learned.
#[derive(Debug, Clone, Copy)]
pub struct Fit<'a> {
    /// The kind of selector.
    pub kind: SelectorKind,
    /// The settings that kinds share.
    pub common: &'a Settings,
    /// Index in the stream of the task that was just learned.
    pub task: usize,
    /// Training rows of the task, with the selector's features.
    pub train: &'a Prepared,
    /// Validation rows of the task, with the selector's features.
    pub valid: &'a Prepared,
}

/// Linear scores over classes: `score[c] = weight[c] · x + bias[c]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Weights `[classes, dim]`.
    pub weight: Vec<f32>,
    /// Biases `[classes]`.
    pub bias: Vec<f32>,
}

impl Scores {
    /// The score of each class for a feature `x [dim]`.
    pub fn of(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(x.len()).zip(&self.bias);
        rows.map(|(w, b)| w.iter().zip(x).map(|(a, b)| a * b).sum::<f32>() + b).collect()
    }

    /// A payload with these scores, to which more tensors may be added.
    pub(super) fn payload(&self) -> Result<TensorsWriter<'static>> {
        let (classes, mut w) = (self.bias.len(), TensorsWriter::new());
        w.add_f32(selector::WEIGHT, &[classes, self.weight.len() / classes.max(1)], &self.weight)?;
        w.add_f32(selector::BIAS, &[classes], &self.bias)?;
        Ok(w)
    }
}

/// The bundle's sections of the selector so far (its payload, and the data it carries from task to task);
/// `None` before the first task.
///
/// # Errors
/// If the bundle has tasks, but its selector carries nothing to continue from.
pub(super) fn earlier<'r>(
    services: &'r Services<'_>,
    draft: &Draft,
    new: &Fit<'_>,
) -> Result<Option<(&'r [u8], &'r [u8])>> {
    let s = &draft.manifest.selector;
    match (s.section, s.stats, services.bundle()) {
        (Some(payload), Some(carried), Some(b)) => Ok(Some((b.section(payload)?, b.section(carried)?))),
        _ if new.task == 0 => Ok(None),
        _ => Err(Error::new(Code::Missing, "the bundle's selector has nothing to extend")
            .hint("it was made with another --selector; use the same one")),
    }
}

/// The statistics so far, extended by the new task's features `[rows, dim]`.
pub(super) fn extended(
    services: &Services<'_>,
    new: &Fit<'_>,
    carried: Option<&[u8]>,
    features: &[f32],
    dim: usize,
) -> Result<Stats> {
    let mut stats = match carried {
        Some(s) => Stats::from_payload(s, dim).map_err(|e| e.in_section("selector statistics"))?,
        None => Stats::new(dim),
    };
    let first = stats.classes();
    stats.grow(services.tasks()[new.task].classes());
    let classes: Vec<usize> = new.train.classes.iter().map(|c| first + c).collect();
    stats.add(features, &classes);
    Ok(stats)
}

/// Enters a selector that scores classes into the draft: `payload` lacks only the classes' tasks and the
/// calibration, `carried` is the data that the next task continues from.
pub(super) fn enter(
    services: &Services<'_>,
    draft: &mut Draft,
    new: &Fit<'_>,
    mut payload: TensorsWriter<'_>,
    form: Form,
    carried: Vec<u8>,
) -> Result<()> {
    let class_task: Vec<i32> = draft
        .manifest
        .tasks
        .iter()
        .flat_map(|task| std::iter::repeat_n(task.id as i32, task.labels.len().max(1)))
        .collect();
    payload.add_i32(selector::CLASS_TASK, &[class_task.len()], &class_task)?;
    let entry = &mut draft.manifest.selector;
    entry.kind = new.kind;
    entry.feature = services.selector_feature().cloned();
    entry.margin = Decimal::from_f64(new.common.margin);
    entry.top_k = new.common.top_k;
    let valid = (new.valid, new.common.abstain);
    let (payload, temperature) = calibrate::calibrate(services, entry, payload, &class_task, form, valid)?;
    let (section, carried) =
        (draft.add_section(SectionKind::Selector, payload), draft.add_section(SectionKind::Stats, carried));
    let entry = &mut draft.manifest.selector;
    (entry.section, entry.stats) = (Some(section), Some(carried));
    entry.temperature = Decimal::from_f64(f64::from(temperature));
    Ok(())
}

/// Length of the selector's feature; 0 if it reads none.
pub(super) fn feature_dim(services: &Services<'_>) -> usize {
    services.selector_feature().map_or(0, |f| f.dim(services.spec().hidden))
}

/// Mean of each column of `x [n, dim]`, and the reciprocal of its deviation.
pub(super) fn standard(x: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let n = (x.len() / dim).max(1) as f64;
    let column = |i: usize| x.iter().skip(i).step_by(dim).map(|v| f64::from(*v));
    (0..dim)
        .map(|i| {
            let mean = column(i).sum::<f64>() / n;
            let variance = column(i).map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
            // A constant column carries no information, so its scale is 0.
            (mean as f32, if variance > 1e-12 { (1.0 / variance.sqrt()) as f32 } else { 0.0 })
        })
        .unzip()
}
