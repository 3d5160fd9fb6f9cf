//! EA-EMR, embedding alignment (Wang et al. 2019, arXiv 1903.02588), and its static ConPET form.
//!
//! As `emr`, but the head reads `a(h) = W_a h + b_a`: after each task the linear map `a` is fitted so that old
//! examples keep the features they had before the task, `min Σ ‖a(h(x)) - a_before(h_before(x))‖²`, and the
//! head's old rows stay valid. `a` stays in force while the next task is learned, and in the bundle: a linear
//! map before a linear head is again a linear head, `W a(h) + b = (W W_a) h + (W b_a + b)`, so the bundle needs
//! nothing new (the published code for LLaMA fits `a` but never applies it).
//!
//! The fit is exact least squares, regularised towards the previous map (with `--align-ridge` times the mean
//! square of the features), instead of 20 epochs of Adam, since a few dozen rows do not determine a matrix of
//! hidden × hidden. Its examples are the remembered old rows, with their features before the task, and the new
//! task's rows chosen for the memory, with their current features. `static-ea-emr` uses the rows that its steps
//! draw.

mod align;

use super::replay::Replay;
use super::shared::Shared;
use crate::data::Joined;
use crate::fit::{Batches, HEAD, HEAD_BIAS, HEAD_WEIGHT, Labelled, Loss, Recipe, Trained};
use crate::services::{Kept, Lesson, Services, Stage};
use crate::settings::range::positive;
use crate::settings::settings;
use align::Map;
use candle_core::{Device, Tensor};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use std::collections::BTreeSet;
use std::ops::Range;

settings! { "ea-emr" Settings Flags {
    /// ea-emr: regularisation of the alignment towards the previous one, as a fraction of the features' mean
    /// square.
    align_ridge: f64 = 0.1, positive();
}}

/// Trains the shared module on new and old rows, then maps its features back to where they were.
pub fn learn(services: &mut Services<'_>, own: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let mut s = Shared::begin(services, stage.task)?;
    let mut kept = if s.t > 0 { services.kept(s.t - 1)? } else { Kept::new() };
    let dim = s.feature.dim(services.spec().hidden);
    let before = Map::from(&kept, dim);
    // The bundle's head includes the map; training continues with the head behind the map.
    for (name, value) in kept.iter().filter(|(n, _)| n.starts_with(HEAD)) {
        s.start.iter_mut().for_each(|t| drop(t.tensors.insert(name.clone(), value.clone())));
    }
    let replay = Replay::new(services, &s, &kept, stage.fixed)?;
    let (rows, pools) = replay.joined(&s);
    let batches = replay.batches(services, &s.name, &rows, &pools);
    let aligned = Aligned { map: before.clone() };
    let Some(mut trained) = s.fit_on(services, &rows, &*batches, &aligned)? else { return Ok(None) };
    let chosen = replay.chosen(services, &s, &trained)?;
    let map = if s.t > 0 {
        let new = &pools[s.t];
        let some = if replay.draws() {
            drawn(&*batches)
        } else {
            (0..new.start).chain(chosen.iter().map(|i| new.start + i)).collect()
        };
        fitted(services, &s, &rows, &some, new, (&before, &trained), own.align_ridge)?
    } else {
        before
    };
    for name in [HEAD_WEIGHT, HEAD_BIAS] {
        kept.insert(name.into(), trained.tensors[name].clone());
    }
    map.keep(&mut kept);
    replay.remember(s.t, &chosen, &mut kept);
    services.keep(s.t, &kept)?;
    map.take_into_head(&mut trained);
    s.finish(services, stage.draft, &trained).map(Some)
}

/// All rows that some step trains on.
pub(super) fn drawn(batches: &dyn Batches) -> Vec<usize> {
    let all: BTreeSet<usize> = (0..batches.steps()).flat_map(|s| batches.rows(s)).collect();
    all.into_iter().collect()
}

/// Fits the map that takes `some` rows to their targets: old rows to their features before the task, new rows
/// to the features that the head was trained on.
fn fitted(
    services: &Services<'_>,
    s: &Shared,
    rows: &Joined<'_>,
    some: &[usize],
    new: &Range<usize>,
    (before, trained): (&Map, &Trained),
    ridge: f64,
) -> Result<Map> {
    let lesson = s.lesson(rows, &crate::fit::Plain);
    let then = services.features(&lesson, some)?;
    let now = services.features(&Lesson { start: Some(trained), ..lesson }, some)?;
    let d = before.dim;
    let place = |(i, row): (usize, &usize)| {
        let from = if new.contains(row) { &now } else { &then };
        before.of(&from[i * d..(i + 1) * d])
    };
    let places: Vec<f32> = some.iter().enumerate().flat_map(place).collect();
    before.refitted(&now, &places, ridge)
}

struct Aligned {
    map: Map,
}

impl Recipe for Aligned {
    fn name(&self) -> String {
        "ea-emr".into()
    }

    fn loss(&self, b: &Labelled<'_>) -> candle_core::Result<Loss> {
        let d = self.map.dim;
        let weight = Tensor::from_slice(&self.map.weight, (d, d), &Device::Cpu)?;
        let bias = Tensor::from_slice(&self.map.bias, d, &Device::Cpu)?;
        let x = b.features.matmul(&weight.t()?)?.broadcast_add(&bias)?;
        b.cross_entropy(&b.logits(&x)?, 0).map(Loss::from)
    }
}
