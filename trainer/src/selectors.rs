//! Selectors: what is fitted so that the runtime can choose a module from the input.
//!
//! Each kind stands in a file of its own and is listed in [`SELECTORS`]. The closed forms
//! ([`lda`], [`ridge`], [`centroid`]) read streamed sufficient statistics only: exact for any order
//! of tasks, and no earlier row is needed again. [`linear`] and [`mlp`] keep a bounded [`memory`] of
//! features in the bundle; [`conpet`] needs the older rows themselves.

mod calibrate;
pub mod centroid;
pub mod conpet;
pub mod lda;
pub mod linear;
pub mod memory;
pub mod mlp;
pub mod ngrams;
pub mod ridge;
pub mod softmax;
pub mod solve;
pub mod stats;

pub use calibrate::best_temperature;
pub use memory::Memory;
pub use ngrams::Counts;
pub use stats::Stats;

use crate::data::Prepared;
use crate::run::Run;
use conpet_formats::bundle::{Draft, SectionKind};
use conpet_formats::decimal::Decimal;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::mmap::Mapped;
use conpet_formats::selector::{self, SelectorKind};
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::{Code, Error, Result};

/// One kind of selector.
#[derive(Debug, Clone, Copy)]
pub struct Selector {
    /// What it is called in flags and bundles.
    pub kind: SelectorKind,
    /// Renews the draft's selector after a task was added to it; false if it was stopped.
    pub fit: fn(&mut Run<'_>, &mut Draft, &New<'_>) -> Result<bool>,
    /// It needs the rows of earlier tasks, so a task cannot be added without the whole stream.
    pub needs_old_rows: bool,
}

/// All kinds that can be asked for.
pub const SELECTORS: [Selector; 8] = [
    Selector { kind: SelectorKind::Lda, fit: lda::fit, needs_old_rows: false },
    Selector { kind: SelectorKind::Ridge, fit: ridge::fit, needs_old_rows: false },
    Selector { kind: SelectorKind::Centroid, fit: centroid::fit, needs_old_rows: false },
    Selector { kind: SelectorKind::Linear, fit: linear::fit, needs_old_rows: false },
    Selector { kind: SelectorKind::Mlp, fit: mlp::fit, needs_old_rows: false },
    Selector { kind: SelectorKind::Conpet, fit: conpet::fit, needs_old_rows: true },
    Selector { kind: SelectorKind::Uniform, fit: unfitted, needs_old_rows: false },
    Selector { kind: SelectorKind::Task, fit: unfitted, needs_old_rows: false },
];

/// The selector with this name.
///
/// # Errors
/// If there is none; the message lists those there are.
pub fn by_name(name: &str) -> Result<Selector> {
    SELECTORS.into_iter().find(|s| s.kind.name() == name).ok_or_else(|| {
        let names: Vec<_> = SELECTORS.iter().map(|s| s.kind.name()).collect();
        Error::new(Code::Value, format!("--selector {name} is not allowed"))
            .hint(format!("--selector takes {}", names.join(", ")))
    })
}

/// The task that was just learned.
#[derive(Debug, Clone, Copy)]
pub struct New<'a> {
    /// Its place in the stream.
    pub task: usize,
    /// Its training rows, with the selector's features.
    pub train: &'a Prepared,
    /// Its validation rows, likewise.
    pub valid: &'a Prepared,
}

/// Linear scores over classes: `score[c] = weight[c] · x + bias[c]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// `[classes, dim]`.
    pub weight: Vec<f32>,
    /// `[classes]`.
    pub bias: Vec<f32>,
}

impl Scores {
    /// The score of each class for a feature `x [dim]`.
    pub fn of(&self, x: &[f32]) -> Vec<f32> {
        let rows = self.weight.chunks_exact(x.len()).zip(&self.bias);
        rows.map(|(w, b)| w.iter().zip(x).map(|(a, b)| a * b).sum::<f32>() + b).collect()
    }

    /// A payload with these scores; more may be added to it.
    fn payload(&self) -> Result<TensorsWriter<'static>> {
        let (classes, mut w) = (self.bias.len(), TensorsWriter::new());
        w.add_f32(selector::WEIGHT, &[classes, self.weight.len() / classes.max(1)], &self.weight)?;
        w.add_f32(selector::BIAS, &[classes], &self.bias)?;
        Ok(w)
    }
}

/// `task` and `uniform`: there is nothing to fit.
fn unfitted(run: &mut Run<'_>, draft: &mut Draft, _: &New<'_>) -> Result<bool> {
    draft.manifest.selector.kind = by_name(&run.config.selector)?.kind;
    Ok(true)
}

/// The bundle's sections of the selector so far (payload, and what it carries from task to task);
/// `None` before the first task.
///
/// # Errors
/// If the bundle has tasks, but its selector carries nothing to go on from.
fn earlier<'r>(run: &'r Run<'_>, draft: &Draft, new: &New<'_>) -> Result<Option<(&'r [u8], &'r [u8])>> {
    let s = &draft.manifest.selector;
    match (s.section, s.stats, &run.bundle) {
        (Some(payload), Some(carried), Some(b)) => Ok(Some((b.section(payload)?, b.section(carried)?))),
        _ if new.task == 0 => Ok(None),
        _ => Err(Error::new(Code::Missing, "the bundle's selector has nothing to extend")
            .hint("it was made with another --selector; use the same one")),
    }
}

/// Extends the statistics so far by the new task's features, `[rows, dim]`.
fn extended(run: &Run<'_>, new: &New<'_>, carried: Option<&[u8]>, features: &[f32], dim: usize) -> Result<Stats> {
    let mut stats = match carried {
        Some(s) => Stats::from_payload(s, dim).map_err(|e| e.in_section("selector statistics"))?,
        None => Stats::new(dim),
    };
    let first = stats.classes();
    stats.grow(run.tasks[new.task].classes());
    let classes: Vec<usize> = new.train.classes.iter().map(|c| first + c).collect();
    stats.add(features, &classes);
    Ok(stats)
}

/// Enters a selector that scores classes: `payload` is complete but for the classes' tasks and what
/// is calibrated, `carried` is what the next task goes on from.
fn enter(
    run: &Run<'_>,
    draft: &mut Draft,
    new: &New<'_>,
    kind: SelectorKind,
    mut payload: TensorsWriter<'_>,
    form: lda::Form,
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
    entry.kind = kind;
    entry.feature = Some(run.selector_feature.clone());
    entry.margin = Decimal::from_f64(run.config.margin);
    entry.top_k = run.config.top_k;
    let (payload, temperature) = calibrate::calibrate(run, entry, payload, &class_task, form, new)?;
    let (section, carried) =
        (draft.add_section(SectionKind::Selector, payload), draft.add_section(SectionKind::Stats, carried));
    let entry = &mut draft.manifest.selector;
    (entry.section, entry.stats) = (Some(section), Some(carried));
    entry.temperature = Decimal::from_f64(f64::from(temperature));
    Ok(())
}

/// Length of what the run's selector reads.
fn feature_dim(run: &Run<'_>) -> usize {
    FeatureSpec::dim(&run.selector_feature, run.engine.base.spec.hidden)
}

/// Mean of each column of rows `x [n, dim]`, and one over its deviation.
fn standard(x: &[f32], dim: usize) -> (Vec<f32>, Vec<f32>) {
    let n = (x.len() / dim).max(1) as f64;
    let column = |i: usize| x.iter().skip(i).step_by(dim).map(|v| f64::from(*v));
    (0..dim)
        .map(|i| {
            let mean = column(i).sum::<f64>() / n;
            let variance = column(i).map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
            // A column that never moves says nothing, however it is scaled.
            (mean as f32, if variance > 1e-12 { (1.0 / variance.sqrt()) as f32 } else { 0.0 })
        })
        .unzip()
}

/// A payload where the runtime looks for one.
fn mapped(payload: Vec<u8>) -> (Mapped, std::ops::Range<usize>) {
    let map = Mapped::from_vec(payload);
    let range = 0..map.len();
    (map, range)
}
