//! Trains one set of factors (and a head) on one set of examples: the one loop of all methods.
//!
//! Everything random comes from streams keyed by (seed, name, step), and the optimizer's state is
//! saved with the parameters, so that a run that was stopped continues to the same bits.

mod batches;
pub(crate) mod checkpoint;
mod observe;
mod pass;
mod recipe;

pub use batches::{Batches, Epochs, Mixture};
pub(crate) use observe::fisher_of_base;
pub use observe::{features, fisher};
pub use recipe::{Buffers, Done, Extra, Gradients, HEAD_BIAS, HEAD_WEIGHT, Labelled, Loss, Plain, Recipe};

use crate::decoder::Decoder;
use crate::nn::numbers;
use crate::optim::{AdamW, AdamWConfig, Param, Schedule};
use crate::pet::{self, Indices};
use candle_core::{Device, Tensor, Var};
use checkpoint::Account;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::pet::{PetSpec, Site};
use conpet_formats::{Code, Error, Result};
use pass::{Parts, gradients};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// What a row is trained towards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A row of the head.
    Class(u32),
    /// Tokens to predict: (position whose state predicts, token).
    Completion(Vec<(usize, u32)>),
}

/// Rows to train on.
pub trait Examples: Sync {
    /// How many.
    fn len(&self) -> usize;
    /// True if there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Tokens of a row.
    fn tokens(&self, i: usize) -> usize;
    /// Appends a row's states after the trunk, `[tokens, hidden]`.
    fn states(&self, i: usize, out: &mut Vec<f32>);
    /// What it is trained towards.
    fn target(&self, i: usize) -> Target;
    /// For each part of the head's feature, the row's tokens it averages.
    fn ranges(&self, i: usize) -> Vec<Range<usize>>;
}

/// The optimizer's hyper-parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Hyper {
    /// Learning rate of the factors.
    pub lr: f32,
    /// Learning rate of the head, as a multiple of `lr`.
    pub head_lr: f32,
    /// AdamW.
    pub adamw: AdamWConfig,
    /// Steps of linear warm-up, as a part of all steps.
    pub warmup: f32,
    /// After the warm-up.
    pub schedule: Schedule,
    /// Largest global gradient norm; 0 is off.
    pub clip: f32,
    /// Dropout of the LoRA's inputs.
    pub dropout: f32,
    /// Bytes of activations kept for the backward pass; the rest is computed again.
    pub activation_bytes: usize,
}

/// What to train.
#[derive(Clone)]
pub struct Job<'a> {
    /// The frozen branch.
    pub decoder: &'a Decoder,
    /// Who computes.
    pub pool: &'a rayon::ThreadPool,
    /// The rows.
    pub examples: &'a dyn Examples,
    /// Their order.
    pub batches: &'a dyn Batches,
    /// What the module is.
    pub pet: &'a PetSpec,
    /// Sites, full names; empty trains the head alone.
    pub sites: &'a [String],
    /// What the head reads and its number of classes (0 for a recipe that needs only the features);
    /// `None` trains the language model.
    pub head: Option<(&'a FeatureSpec, usize)>,
    /// How the method departs from plain training.
    pub recipe: &'a dyn Recipe,
    /// The optimizer.
    pub hyper: &'a Hyper,
    /// Seed of every stream.
    pub seed: u64,
    /// Names the streams and messages.
    pub name: &'a str,
    /// Factors and head to start from.
    pub start: Option<&'a Trained>,
    /// Where to keep the state of an unfinished run, and every how many steps.
    pub checkpoint: Option<(PathBuf, u64)>,
    /// Set to stop after the step under way.
    pub stop: &'a AtomicBool,
}

/// What training made: numbers by tensor name, with shapes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trained {
    /// The module's by full name (`<site>.lora_a`, ...), `head.weight`, `head.bias`, and the recipe's own.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// Where the numbers of a sparse delta stand.
    pub indices: Indices,
    /// The recipe's buffers.
    pub buffers: Buffers,
    /// Numbers that were trained.
    pub trainable: usize,
    /// Steps taken.
    pub steps: u64,
    /// Rows trained on, in all.
    pub rows: u64,
    /// Tokens trained on, in all.
    pub tokens: u64,
    /// Seconds it took (of this process).
    pub seconds: f64,
    /// Loss of the last tenth of the steps.
    pub loss: f32,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// Trained to the end.
    Done(Trained),
    /// Stopped; the checkpoint, if one was asked for, continues it.
    Stopped,
}

/// Progress after a step.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Loss of this step.
    pub loss: f32,
    /// Tokens a second, so far.
    pub rate: f64,
}

fn failed(name: &str, step: u64, e: &candle_core::Error) -> Error {
    // Only the first line: candle adds a backtrace.
    let text = e.to_string();
    Error::new(
        Code::Value,
        format!("training {name} failed at step {step}: {}", text.lines().next().unwrap_or_default()),
    )
    .hint("lower --lr, or shorten the rows; the last checkpoint is intact")
}

/// Trains to the end, or until stopped.
///
/// # Errors
/// If a loss or gradient is not finite (the last checkpoint stays), or a checkpoint cannot be
/// written or does not belong to this job.
pub fn fit(job: &Job<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Outcome> {
    let wrong = |step: u64| move |e: candle_core::Error| failed(job.name, step, &e);
    let frame = Frame::new(job)?;
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

/// What of a module is not trained: where it acts.
#[derive(Debug)]
struct Frame {
    /// Sites of the job.
    sites: Vec<Site>,
    /// Where a sparse delta's numbers stand.
    indices: Indices,
}

impl Frame {
    /// Positions as in what the job starts from, or chosen by the spec's rule.
    fn new(job: &Job<'_>) -> Result<Self> {
        let sites = job.sites.iter().map(|s| Site::parse(&job.decoder.spec, s)).collect::<Result<Vec<_>>>()?;
        let indices = match job.start.filter(|s| !s.indices.is_empty()) {
            Some(start) => start.indices.clone(),
            None => pet::choose::for_job(job, &sites)?,
        };
        Ok(Self { sites, indices })
    }

    /// What is kept of the variables: see [`pet::in_force`].
    fn module(&self, job: &Job<'_>, params: &BTreeMap<String, Param>) -> candle_core::Result<BTreeMap<String, Tensor>> {
        let vars = params.iter().map(|(n, p)| (n.clone(), p.var.clone())).collect();
        pet::in_force(job.pet, &job.decoder.base, &self.sites, &vars)
    }
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

/// Variables: where each kind starts ([`pet::fresh`]), the head zero, the recipe's own as it says; or
/// whatever the job starts from, whose numbers take the first rows and columns of what has grown.
fn parameters(job: &Job<'_>, frame: &Frame) -> candle_core::Result<AdamW> {
    let mut optim = AdamW::new(job.hyper.adamw);
    let known = |name: &str| job.start.and_then(|s| s.tensors.get(name));
    let mut add = |name: String, shape: &[usize], mut values: Vec<f32>, lr: f32| -> candle_core::Result<()> {
        if let Some((old_shape, old)) = known(&name) {
            let width = |s: &[usize]| s[1..].iter().product::<usize>();
            let (old_width, width) = (width(old_shape), width(shape));
            let n = old_width.min(width);
            for (new, old) in values.chunks_exact_mut(width).zip(old.chunks_exact(old_width)) {
                new[..n].copy_from_slice(&old[..n]);
            }
        }
        optim.add(name, Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)?, lr);
        Ok(())
    };
    let (base, named) = (&job.decoder.base, (job.seed, job.name));
    for x in pet::fresh(base, job.pet, &frame.sites, &frame.indices, named, |n| known(n).is_some()) {
        add(x.name, &x.shape, x.values, 1.0)?;
    }
    if let Some((feature, classes)) = job.head.filter(|(_, n)| *n > 0) {
        let dim = feature.dim(job.decoder.spec.hidden);
        add(HEAD_WEIGHT.into(), &[classes, dim], vec![0.0; classes * dim], job.hyper.head_lr)?;
        add(HEAD_BIAS.into(), &[classes], vec![0.0; classes], job.hyper.head_lr)?;
    }
    for x in job.recipe.parameters() {
        add(x.name, &x.shape, x.start, x.lr)?;
    }
    Ok(optim)
}

#[cfg(test)]
mod tests;
