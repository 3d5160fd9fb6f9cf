//! Learning without forgetting (Li & Hoiem 2016, arXiv 1606.09282): on the new task's rows, the scores of the
//! old labels must stay as they were.
//!
//! `L = CE + λ T² · mean_x CE(softmax(z_old(x) / T), softmax(z(x) / T))` over the labels of earlier tasks,
//! with `z_old` recorded before the task begins. The factor T² keeps the size of the gradient
//! (Hinton et al. 2015). No earlier row is needed.

use super::shared::Shared;
use crate::fit::{HEAD_BIAS, HEAD_WEIGHT, Labelled, Loss, Recipe, Trained};
use crate::services::{Services, Stage};
use crate::settings::range::{not_negative, positive};
use crate::settings::settings;
use candle_core::{Device, Tensor};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::head::log_softmax;

settings! { "lwf" Settings Flags {
    /// lwf: weight of keeping the scores of earlier labels.
    lwf_lambda: f64 = 1.0, not_negative();
    /// lwf: temperature of the recorded scores.
    lwf_temperature: f64 = 2.0, positive();
}}

/// Trains the shared module on the next task, held by its earlier scores.
pub fn learn(services: &mut Services<'_>, own: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let s = Shared::begin(services, stage.task)?;
    let mut lwf = Lwf { lambda: own.lwf_lambda, temperature: own.lwf_temperature, old: s.before, said: Vec::new() };
    if let Some(start) = &s.start {
        let rows: Vec<usize> = (0..s.data.prompts.len()).collect();
        let features = services.features(&s.lesson(&s.rows(), &lwf), &rows)?;
        lwf.said = said(start, &features, s.feature.dim(services.spec().hidden), lwf.temperature as f32);
    }
    let Some(trained) = s.fit(services, &lwf)? else { return Ok(None) };
    s.finish(services, stage.draft, &trained).map(Some)
}

/// Probabilities `[rows, old labels]` of a head on features `[rows, dim]`.
fn said(head: &Trained, features: &[f32], dim: usize, temperature: f32) -> Vec<f32> {
    let (weight, bias) = (&head.tensors[HEAD_WEIGHT].1, &head.tensors[HEAD_BIAS].1);
    let one = |x: &[f32]| {
        let mut z = conpet_formats::head::logits_reference(weight, bias, x);
        log_softmax(&mut z, temperature);
        z.into_iter().map(f32::exp)
    };
    features.chunks_exact(dim).flat_map(one).collect()
}

struct Lwf {
    lambda: f64,
    temperature: f64,
    /// Labels of earlier tasks.
    old: usize,
    /// Recorded probabilities of these labels on each row, `[rows, old]`.
    said: Vec<f32>,
}

impl Recipe for Lwf {
    fn name(&self) -> String {
        format!("lwf {} {}", self.lambda, self.temperature)
    }

    fn loss(&self, b: &Labelled<'_>) -> candle_core::Result<Loss> {
        let logits = b.logits(b.features)?;
        let new = b.cross_entropy(&logits, 0)?;
        if self.said.is_empty() {
            return Ok(new.into());
        }
        let said: Vec<f32> =
            b.rows.iter().flat_map(|i| &self.said[i * self.old..(i + 1) * self.old]).copied().collect();
        let said = Tensor::from_vec(said, (b.rows.len(), self.old), &Device::Cpu)?;
        let now = (logits.narrow(1, 0, self.old)?.contiguous()? / self.temperature)?;
        let cost = (said * candle_nn::ops::log_softmax(&now, 1)?)?.sum(1)?.mean(0)?.neg()?;
        (new + (cost * (self.lambda * self.temperature * self.temperature))?).map(Loss::from)
    }
}
