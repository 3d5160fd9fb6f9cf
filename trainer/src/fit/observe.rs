//! Runs rows without training on them: features with a module in force, and the Fisher information of its
//! parameters.

use super::frame::parameters;
use super::job::{Hyper, Job, failed};
use super::pass::{Parts, forward, pooled, shard};
use super::positions::frame;
use super::recipe::{Buffers, Gradients, Labelled, Loss, Recipe};
use crate::decoder::Training;
use crate::nn::numbers;
use crate::rng::Stream;
use candle_core::{Device, Tensor};
use conpet_formats::Result;
use rayon::prelude::*;

/// The head's feature of each row, `[rows, dim]`, with the module that the job starts from in force.
///
/// # Errors
/// If the job has no head, or a row cannot be run.
pub fn features(job: &Job<'_>, rows: &[usize]) -> Result<Vec<f32>> {
    let wrong = |e: candle_core::Error| failed(job.name, 0, &e);
    let (frame, none) = (frame(job)?, Buffers::new());
    let params = parameters(job, &frame).map_err(wrong)?.params;
    let parts = Parts::new(job, &frame, &params, &none, 0).map_err(wrong)?;
    let one = |rows: &[usize]| -> candle_core::Result<Vec<f32>> {
        let Some((feature, _)) = job.head else { candle_core::bail!("the job has no head") };
        let (y, batch) = forward(job, rows, &parts, &Training::default())?;
        numbers(&pooled(job, feature, rows, &batch, &y)?)
    };
    let chunks: Vec<_> = job.pool.install(|| rows.par_chunks(16).map(one).collect());
    Ok(chunks.into_iter().collect::<candle_core::Result<Vec<_>>>().map_err(wrong)?.concat())
}

/// The diagonal of the Fisher information at the parameters that the job starts from, as a mean over
/// `rows`: `F_i = E_x E_{y ~ p(y|x)} (∂ log p(y|x) / ∂θ_i)²`.
///
/// The label is drawn from the model's own distribution, not taken from the data (that would be the "empirical
/// Fisher", which is not the Fisher information: Kunstner et al. 2019). A generation row uses its own answer,
/// because drawing one would be expensive.
///
/// # Errors
/// If a row cannot be run.
pub fn fisher(job: &Job<'_>, rows: &[usize]) -> Result<Gradients> {
    let drawn = Drawn { seed: job.seed, name: format!("{}/fisher", job.name) };
    let hyper = Hyper { dropout: 0.0, ..job.hyper.clone() };
    let job = &Job { recipe: &drawn, hyper: &hyper, ..job.clone() };
    let wrong = |e: candle_core::Error| failed(job.name, 0, &e);
    let (frame, none) = (frame(job)?, Buffers::new());
    let params = parameters(job, &frame).map_err(wrong)?.params;
    let parts = Parts::new(job, &frame, &params, &none, 0).map_err(wrong)?;
    let mut sum = Gradients::new();
    for chunk in rows.chunks(64) {
        // One row at a time: the mean of squares is not the square of the mean.
        let one = |i: &usize| shard(job, std::slice::from_ref(i), 1.0, (0, usize::MAX), &parts);
        let given: Vec<_> = job.pool.install(|| chunk.par_iter().map(one).collect());
        for g in given {
            for (name, g) in g.map_err(wrong)?.grads {
                let f = sum.entry(name).or_insert_with(|| vec![0.0; g.len()]);
                f.iter_mut().zip(&g).for_each(|(f, g)| *f += g * g / rows.len() as f32);
            }
        }
    }
    Ok(sum)
}

/// Cross-entropy with labels drawn from the model.
struct Drawn {
    seed: u64,
    name: String,
}

impl Recipe for Drawn {
    fn name(&self) -> String {
        "drawn".into()
    }

    fn loss(&self, b: &Labelled<'_>) -> candle_core::Result<Loss> {
        let logits = b.logits(b.features)?;
        let n = logits.dim(1)?;
        let p = numbers(&candle_nn::ops::softmax(&logits.detach(), 1)?)?;
        let draw = |(row, p): (&usize, &[f32])| {
            let mut left = Stream::new(self.seed, &self.name, *row as u64).uniform();
            let found = p.iter().position(|p| {
                left -= p;
                left < 0.0
            });
            found.unwrap_or(n - 1) as u32
        };
        let classes: Vec<u32> = b.rows.iter().zip(p.chunks_exact(n)).map(draw).collect();
        let classes = Tensor::from_vec(classes, b.rows.len(), &Device::Cpu)?;
        candle_nn::loss::cross_entropy(&logits, &classes).map(Loss::from)
    }
}
