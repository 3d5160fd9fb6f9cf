//! The training loop, with checkpoints.

use super::checkpoint::{self, Account};
use super::frame::{Frame, parameters};
use super::job::{Job, Outcome, Progress, failed};
use super::pass::{Parts, gradients};
use super::recipe::{Buffers, Done};
use super::trained::Trained;
use crate::nn::numbers;
use crate::optim::AdamW;
use conpet_formats::Result;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Trains a job whose frame is known: see [`super::fit`].
///
/// # Errors
/// See [`super::fit`].
pub(super) fn train(job: &Job<'_>, frame: Frame, progress: &mut dyn FnMut(Progress)) -> Result<Outcome> {
    let wrong = |step: u64| move |e: candle_core::Error| failed(job.name, step, &e);
    let mut optim = parameters(job, &frame).map_err(wrong(0))?;
    let mut buffers = job.recipe.buffers(&optim.params).map_err(wrong(0))?;
    let mut account = Account::default();
    if let Some((path, _)) = job.checkpoint.as_ref().filter(|(p, _)| p.exists()) {
        account = checkpoint::load(job, path, &mut optim, &mut buffers)?;
    }
    let begin = Instant::now();
    let (steps, resumed, earlier) = (job.batches.steps(), account.tokens, account.time);
    let warmup = (job.hyper.warmup * steps as f32).round() as u64;
    while optim.step < steps {
        let step = optim.step;
        let rows = job.batches.rows(step);
        let loss = one_step(job, &rows, &frame, &mut optim, &mut buffers, (warmup, steps)).map_err(wrong(step))?;
        account.rows += rows.len() as u64;
        account.tokens += rows.iter().map(|i| job.examples.tokens(*i) as u64).sum::<u64>();
        account.losses.push(loss);
        account.time = earlier + begin.elapsed();
        let rate = (account.tokens - resumed) as f64 / begin.elapsed().as_secs_f64();
        progress(Progress { step: optim.step, steps, loss, rate });
        let stop = job.stop.load(Ordering::Relaxed) && optim.step < steps;
        if let Some((path, every)) = &job.checkpoint
            && (stop || (*every > 0 && optim.step % every == 0 && optim.step < steps))
        {
            checkpoint::save(job, path, &optim, &buffers, &account)?;
        }
        if stop {
            return Ok(Outcome::Stopped);
        }
    }
    let losses = &account.losses;
    let tail = &losses[losses.len() - losses.len().div_ceil(10)..];
    let mut tensors = BTreeMap::new();
    for (name, t) in frame.module(job, &optim.params).map_err(wrong(optim.step))? {
        tensors.insert(name, (t.dims().to_vec(), numbers(&t).map_err(wrong(optim.step))?));
    }
    Ok(Outcome::Done(Trained {
        tensors,
        indices: frame.indices,
        buffers,
        trainable: optim.trainable(),
        steps,
        rows: account.rows,
        tokens: account.tokens,
        seconds: account.time.as_secs_f64(),
        loss: tail.iter().sum::<f32>() / tail.len().max(1) as f32,
    }))
}

/// One step; returns its loss.
fn one_step(
    job: &Job<'_>,
    rows: &[usize],
    frame: &Frame,
    optim: &mut AdamW,
    buffers: &mut Buffers,
    (warmup, steps): (u64, u64),
) -> candle_core::Result<f32> {
    let step = optim.step;
    for (name, p) in &mut optim.params {
        p.held = job.recipe.held(name, step, steps);
    }
    let mut given = gradients(job, rows, &Parts::new(job, frame, &optim.params, buffers, step)?)?;
    let loss = given.loss + job.recipe.gradient(&optim.params, &mut given.grads)?;
    if !loss.is_finite() {
        candle_core::bail!("the loss is {loss}");
    }
    let lr = job.hyper.lr * job.hyper.schedule.factor(step, warmup, steps);
    optim.step(&given.grads, lr, job.hyper.clip)?;
    job.recipe.after(&Done { rows, notes: &given.notes, params: &optim.params }, buffers)?;
    Ok(loss)
}
