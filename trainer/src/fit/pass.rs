//! One batch: forward through the branch to a loss, and backward.

use super::frame::Frame;
use super::job::{Job, Target};
use super::recipe::{Buffers, Gradients, Labelled};
use crate::decoder::Training;
use crate::nn::attention::Ragged;
use crate::nn::lm_loss::lm_loss;
use crate::nn::norm::Norm;
use crate::nn::numbers;
use crate::nn::pool::pool;
use crate::optim::Param;
use crate::pet::probe::Probe;
use crate::pet::{self, Dropout, TrainedModule};
use candle_core::{Device, Result, Tensor, Var};
use conpet_formats::feature::{FeatureSpec, StateNorm};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The parameters in force for a batch.
#[derive(Debug)]
pub(super) struct Parts<'a> {
    pub(super) vars: BTreeMap<String, Var>,
    pub(super) frame: &'a Frame,
    pub(super) buffers: &'a Buffers,
    pub(super) step: u64,
    /// Records gradients of frozen weights.
    pub(super) probe: Option<Arc<Probe>>,
}

impl<'a> Parts<'a> {
    pub(super) fn new(
        job: &Job<'_>,
        frame: &'a Frame,
        params: &BTreeMap<String, Param>,
        buffers: &'a Buffers,
        step: u64,
    ) -> Result<Self> {
        let vars = params.keys().map(|n| Ok((n.clone(), job.recipe.in_force(n, params)?))).collect::<Result<_>>()?;
        Ok(Self { vars, frame, buffers, step, probe: None })
    }

    fn module(&self, job: &Job<'_>) -> Result<TrainedModule> {
        let vars = self.vars.iter().map(|(name, v)| (name.clone(), v.as_tensor().clone())).collect();
        let tensors = pet::in_force(job.pet, &job.decoder.spec, &self.frame.sites, vars)?;
        let (pet, indices, probe) = (job.pet.clone(), self.frame.indices.clone(), self.probe.clone());
        Ok(TrainedModule { pet, tensors, indices, probe })
    }
}

/// Results of a batch or of one of its shards.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) loss: f32,
    pub(super) grads: Gradients,
    /// The loss's notes, row by row.
    pub(super) notes: Vec<f32>,
}

/// Tokens of a shard. With fewer, a matrix product spends a quarter of its time packing the weights.
const SHARD_TOKENS: usize = 256;
/// Fewest tokens of a shard if the batch would otherwise be a single shard.
const LEAST_TOKENS: usize = 64;

/// Loss and gradients of one batch.
///
/// The batch is cut into shards that are computed in parallel, each on one thread if there are at least as many
/// shards as threads: threads then synchronise once a step, not at every product. The cut depends only on the
/// batch, and sums are taken in order, so the result does not depend on the number of threads.
pub(super) fn gradients(job: &Job<'_>, rows: &[usize], parts: &Parts<'_>) -> Result<Given> {
    let shards = cut(job, rows);
    let all = weight(job, rows);
    let one = |(i, rows): (usize, &&[usize])| shard(job, rows, weight(job, rows) / all, (i, shards.len()), parts);
    let done: Vec<_> = job.pool.install(|| shards.par_iter().enumerate().map(one).collect());
    let mut done = done.into_iter();
    let mut sum = done.next().unwrap_or_else(|| candle_core::bail!("a batch without rows"))?;
    for part in done {
        let part = part?;
        sum.loss += part.loss;
        sum.notes.extend(part.notes);
        for (sum, g) in sum.grads.values_mut().zip(part.grads.values()) {
            sum.iter_mut().zip(g).for_each(|(s, g)| *s += g);
        }
    }
    Ok(sum)
}

/// The shards of a batch.
pub(super) fn cut<'r>(job: &Job<'_>, rows: &'r [usize]) -> Vec<&'r [usize]> {
    let tokens: usize = rows.iter().map(|i| job.examples.tokens(*i)).sum();
    let most = (tokens / SHARD_TOKENS).max((tokens / LEAST_TOKENS).min(2)).clamp(1, 64).min(rows.len());
    // A power of two divides evenly over the usual numbers of processors.
    rows.chunks(rows.len().div_ceil(1 << most.ilog2())).collect()
}

/// The weight of rows in a batch's mean: the number of class labels or answer tokens.
fn weight(job: &Job<'_>, rows: &[usize]) -> f64 {
    let targets = |i: &usize| match job.examples.target(*i) {
        Target::Class(_) => 1,
        Target::Completion(t) => t.len(),
    };
    rows.iter().map(targets).sum::<usize>() as f64
}

/// Loss and gradients of the `i`-th of `n` shards, times its share of the batch.
pub(super) fn shard(
    job: &Job<'_>,
    rows: &[usize],
    part: f64,
    (i, n): (usize, usize),
    parts: &Parts<'_>,
) -> Result<Given> {
    let d = job.decoder;
    let how = Training {
        threads: (d.threads / n).max(1),
        activation_bytes: Some(job.hyper.activation_bytes / n.min(d.threads)),
        dropout: (job.hyper.dropout > 0.0).then(|| Dropout {
            p: job.hyper.dropout,
            seed: job.seed,
            name: format!("{}/{i}", job.name),
            step: parts.step,
        }),
    };
    let (y, batch) = forward(job, rows, parts, &how)?;
    let (mean, notes) = match job.head {
        Some((feature, _)) => {
            let features = &pooled(job, feature, rows, &batch, &y)?;
            let classes: Vec<u32> = rows.iter().map(|i| class(job, *i)).collect();
            let (classes, vars, buffers) = (&classes, &parts.vars, parts.buffers);
            let loss = job.recipe.loss(&Labelled { rows, classes, features, vars, buffers, step: parts.step })?;
            (loss.mean, loss.notes.map(|t| numbers(&t)).transpose()?.unwrap_or_default())
        }
        None => (completion_loss(job, rows, &batch, &y, how.threads)?, Vec::new()),
    };
    let loss = (mean * part)?;
    let store = loss.backward()?;
    let mut grads = BTreeMap::new();
    for (name, var) in &parts.vars {
        if let Some(g) = store.get(var) {
            grads.insert(name.clone(), numbers(g)?);
        }
    }
    Ok(Given { loss: loss.to_scalar()?, grads, notes })
}

/// The class of a row; 0 for a generation row.
fn class(job: &Job<'_>, i: usize) -> u32 {
    match job.examples.target(i) {
        Target::Class(c) => c,
        Target::Completion(_) => 0,
    }
}

/// States of some rows after the last layer.
pub(super) fn forward(job: &Job<'_>, rows: &[usize], parts: &Parts<'_>, how: &Training) -> Result<(Tensor, Ragged)> {
    let d = job.decoder;
    let lens: Vec<usize> = rows.iter().map(|i| job.examples.tokens(*i)).collect();
    let tokens: usize = lens.iter().sum();
    let mut states = Vec::with_capacity(tokens * d.spec.hidden);
    rows.iter().for_each(|i| job.examples.states(*i, &mut states));
    let hidden = Tensor::from_vec(states, (tokens, d.spec.hidden), &Device::Cpu)?;
    let batch = Ragged::new(&d.spec, &lens);
    Ok((d.forward(&hidden, &batch, &parts.module(job)?, how)?, batch))
}

/// The head's features of some rows, `[rows, dim]`.
pub(super) fn pooled(
    job: &Job<'_>,
    feature: &FeatureSpec,
    rows: &[usize],
    batch: &Ragged,
    y: &Tensor,
) -> Result<Tensor> {
    let d = job.decoder;
    let x = match feature.norm {
        StateNorm::Output => d.final_norm(y)?,
        StateNorm::Rms => Norm::plain_rms(d.spec.hidden, 1e-6).apply(y)?,
        StateNorm::None => y.clone(),
    };
    let mut ranges = Vec::with_capacity(rows.len() * feature.parts.len());
    for (i, r) in rows.iter().zip(batch.rows()) {
        let parts = job.examples.ranges(*i).into_iter().zip(&feature.parts);
        ranges.extend(parts.map(|(x, part)| (r.start + x.start..r.start + x.end, part.pool.reduce())));
    }
    pool(&x, ranges)?.reshape((rows.len(), feature.dim(d.spec.hidden)))
}

fn completion_loss(job: &Job<'_>, rows: &[usize], batch: &Ragged, y: &Tensor, threads: usize) -> Result<Tensor> {
    let (mut at, mut targets) = (Vec::new(), Vec::new());
    for (i, r) in rows.iter().zip(batch.rows()) {
        if let Target::Completion(t) = job.examples.target(*i) {
            for (position, token) in t {
                at.push((r.start + position) as u32);
                targets.push(token);
            }
        }
    }
    let n = at.len();
    // Only positions that predict an answer token need the norm and the head.
    let states = y.index_select(&Tensor::from_vec(at, n, &Device::Cpu)?, 0)?;
    lm_loss(&job.decoder.final_norm(&states)?, job.decoder.output(), targets, threads)
}
