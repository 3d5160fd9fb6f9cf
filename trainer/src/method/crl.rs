//! CRL, consistent representation learning (Zhao et al. 2022, arXiv 2203.02700), and its static ConPET
//! form.
//!
//! Features `h` of the same class are drawn together and those of different classes apart, through a projection
//! `x = normalise(W_2 relu(W_1 h + b_1) + b_2)` to 64 dimensions, against a bank of the rows' last `x`:
//! `L_i = -1/|P_i| Σ_{j ∈ P_i} log(exp(x_i·z_j / τ) / Σ_k exp(x_i·z_k / τ))`, P_i the rows of i's class.
//!
//! 1. **New rows**: `--epochs` passes, the bank holding the task's rows.
//! 2. **Memory** (from the second task on): the same loss over remembered rows of all tasks, plus, on rows of
//!    earlier tasks, `KL(softmax(10 · P P_y) ‖ softmax(10 · C x))`: a row must be as similar to the class means
//!    now (C, normalised means of the bank) as its class's prototype was to the others before the task (P,
//!    normalised means of features). `static-crl`: this phase takes a fixed number of batches, half new, half
//!    old, drawn uniformly over tasks from all old rows.
//!
//! The answer is the nearest class mean, `-‖h - μ_c‖² / d`, which is a linear head: `(2 μ_c · h - ‖μ_c‖²) / d`
//! up to a term that all classes share. Means are recomputed after each task over the rows of phase 2 (and
//! remembered ones of the new task); a class that the static form never drew keeps its mean.

mod contrast;

use super::ea_emr::drawn;
use super::replay::Replay;
use super::shared::{Shared, done};
use crate::data::Joined;
use crate::fit::{Epochs, Extra, HEAD_BIAS, HEAD_WEIGHT, Trained};
use crate::rng::Stream;
use crate::services::lesson::lens;
use crate::services::{Kept, Lesson, Services, Stage};
use crate::settings::range::{at_least_one, positive};
use crate::settings::settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use contrast::{Consistency, Contrast, OUT, project};

settings! { "crl" Settings Flags {
    /// crl: temperature of the contrastive loss.
    crl_temperature: f64 = 0.1, positive();
    /// crl: rows of the bank that each step is compared with.
    crl_bank: usize = 500, at_least_one();
}}

/// Trains the shared module to tell the classes apart, then to keep their similarities to each other.
pub fn learn(services: &mut Services<'_>, own: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let mut s = Shared::begin(services, stage.task)?;
    let mut kept = if s.t > 0 { services.kept(s.t - 1)? } else { Kept::new() };
    let dim = s.feature.dim(services.spec().hidden);
    // The bundle's head holds the means of the stage before; the projection continues from that stage.
    let old_means = s.start.as_ref().map_or(Vec::new(), |t| means_of(t, dim));
    if let Some(start) = &mut s.start {
        start.tensors.extend(kept.iter().filter(|(n, _)| n.starts_with("proj.")).map(|(n, v)| (n.clone(), v.clone())));
    }
    let new_rows = s.rows();
    let all: Vec<usize> = (0..s.data.prompts.len()).collect();
    let first = contrast(services, own, &s, &new_rows, &all, (s.start.as_ref(), None))?;
    let lesson = Lesson { head: Some((&s.feature, 0)), ..s.lesson(&new_rows, &first) };
    let Some(mut trained) = done(services.fit(&lesson)?)? else { return Ok(None) };

    let replay = Replay::new(services, &s, &kept, stage.fixed)?;
    let chosen = replay.chosen(services, &s, &trained)?;
    let (rows, pools) = replay.joined(&s);
    let new = pools[s.t].start;
    let mut some: Vec<usize> = (0..new).chain(chosen.iter().map(|i| new + i)).collect();
    if s.t > 0 {
        let name = format!("{}-memory", s.name);
        let c = &services.settings().training;
        let batches = if replay.draws() {
            let mixed = replay.batches(services, &name, &rows, &pools);
            some = drawn(&*mixed);
            mixed
        } else {
            Box::new(Epochs::over(some.clone(), &lens(&rows), c.batch, c.epochs, c.seed, &name))
        };
        let consistency = Consistency::new(&old_means, dim);
        let second = contrast(services, own, &s, &rows, &some, (Some(&trained), Some(consistency)))?;
        let lesson = s.lesson(&rows, &second);
        let lesson = Lesson {
            name: &name,
            head: Some((&s.feature, 0)),
            batches: Some(&*batches),
            start: Some(&trained),
            ..lesson
        };
        let Some(again) = done(services.fit(&lesson)?)? else { return Ok(None) };
        services.account(&trained);
        trained = again;
    }
    let lesson = Lesson { start: Some(&trained), ..s.lesson(&rows, &crate::fit::Plain) };
    let features = services.features(&lesson, &some)?;
    let means = means(&rows, &some, &features, (dim, s.classes), &old_means);
    let proj = trained.tensors.iter().filter(|(n, _)| n.starts_with("proj."));
    kept.extend(proj.map(|(n, v)| (n.clone(), v.clone())));
    replay.remember(s.t, &chosen, &mut kept);
    services.keep(s.t, &kept)?;
    nearest_mean_head(&mut trained, &means, dim);
    s.finish(services, stage.draft, &trained).map(Some)
}

/// The contrastive recipe, with a bank of `some` rows as projected by `start`.
fn contrast(
    services: &Services<'_>,
    own: &Settings,
    s: &Shared,
    rows: &Joined<'_>,
    some: &[usize],
    (start, consistency): (Option<&Trained>, Option<Consistency>),
) -> Result<Contrast> {
    let dim = s.feature.dim(services.spec().hidden);
    let projection = projection(dim, services.settings().training.seed);
    let features = services.features(&Lesson { start, ..s.lesson(rows, &crate::fit::Plain) }, some)?;
    let part = |x: &Extra| match start.and_then(|t| t.tensors.get(&x.name)) {
        Some((_, v)) => v.clone(),
        None => x.start.clone(),
    };
    let parts: Vec<Vec<f32>> = projection.iter().map(part).collect();
    let bank = features.chunks_exact(dim).flat_map(|h| project(h, &parts)).collect();
    Ok(Contrast {
        projection,
        slots: some.iter().enumerate().map(|(slot, row)| (*row, slot)).collect(),
        classes: some.iter().map(|row| rows.class(*row)).collect(),
        bank,
        temperature: own.crl_temperature,
        sample: own.crl_bank,
        seed: services.settings().training.seed,
        name: s.name.clone(),
        consistency,
    })
}

/// The initial projection (uniform, the usual initialisation of a linear layer).
fn projection(dim: usize, seed: u64) -> Vec<Extra> {
    let bound = 1.0 / (dim as f32).sqrt();
    let draw = |name: &str, shape: &[usize]| {
        let n = shape.iter().product();
        let start = Stream::new(seed, &format!("crl/{name}"), 0).symmetric(n, bound);
        Extra { name: format!("proj.{name}"), shape: shape.to_vec(), start, lr: 1.0 }
    };
    vec![draw("w1", &[dim, dim]), draw("b1", &[dim]), draw("w2", &[OUT, dim]), draw("b2", &[OUT])]
}

/// Means `[classes, dim]` of the classes' features; a class without rows keeps its old mean.
fn means(rows: &Joined<'_>, some: &[usize], features: &[f32], (dim, classes): (usize, usize), old: &[f32]) -> Vec<f32> {
    let (mut sums, mut counts) = (vec![0.0; classes * dim], vec![0usize; classes]);
    for (row, h) in some.iter().zip(features.chunks_exact(dim)) {
        let c = rows.class(*row);
        counts[c] += 1;
        sums[c * dim..(c + 1) * dim].iter_mut().zip(h).for_each(|(s, v)| *s += v);
    }
    for (c, sum) in sums.chunks_exact_mut(dim).enumerate() {
        match (counts[c], old.get(c * dim..(c + 1) * dim)) {
            (0, Some(known)) => sum.copy_from_slice(known),
            (n, _) => sum.iter_mut().for_each(|v| *v /= n.max(1) as f32),
        }
    }
    sums
}

/// The head that answers with the nearest mean.
fn nearest_mean_head(t: &mut Trained, means: &[f32], dim: usize) {
    let d = dim as f32;
    let weight = means.iter().map(|m| 2.0 * m / d).collect();
    let bias: Vec<f32> = means.chunks_exact(dim).map(|m| -m.iter().map(|v| v * v).sum::<f32>() / d).collect();
    t.tensors.insert(HEAD_WEIGHT.into(), (vec![bias.len(), dim], weight));
    t.tensors.insert(HEAD_BIAS.into(), (vec![bias.len()], bias));
}

/// The means behind a head made by [`nearest_mean_head`].
fn means_of(t: &Trained, dim: usize) -> Vec<f32> {
    t.tensors[HEAD_WEIGHT].1.iter().map(|w| w * dim as f32 / 2.0).collect()
}
