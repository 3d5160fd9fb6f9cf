//! Trains one set of factors (and a head) on one set of examples: the one loop of all methods.
//!
//! Everything random comes from streams keyed by (seed, name, step), and the optimizer's state is
//! saved with the parameters, so that a run that was stopped continues to the same bits.

use crate::decoder::{Adapters, Decoder, Training};
use crate::nn::attention::Ragged;
use crate::nn::lm_loss::lm_loss;
use crate::nn::numbers;
use crate::nn::pet::Dropout;
use crate::nn::pool::pool;
use crate::nn::rms_norm::rms_norm;
use crate::nn::sparse::{PROBE, Probe};
use crate::optim::{AdamW, AdamWConfig, Schedule};
use crate::pet::{self, Indices};
use crate::rng::Stream;
use candle_core::{Device, Tensor, Var};
use conpet_formats::feature::{FeatureSpec, StateNorm};
use conpet_formats::pet::{PetSpec, Place, Site};
use conpet_formats::tensors::{Tensors, TensorsWriter};
use conpet_formats::{Code, Error, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

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

/// Which rows each step sees.
pub trait Batches: Sync {
    /// Steps in all.
    fn steps(&self) -> u64;
    /// Rows of a step; the same for the same step, always.
    fn rows(&self, step: u64) -> Vec<usize>;
}

/// Shuffled passes over all rows, rows of similar length together.
#[derive(Debug)]
pub struct Epochs {
    batches: Vec<Vec<usize>>,
}

impl Epochs {
    /// `epochs` passes in batches of `batch` rows. Within windows of 16 batches rows are sorted by
    /// length, so that a batch's rows are alike; the order of batches is shuffled again.
    pub fn new(lens: &[usize], batch: usize, epochs: usize, seed: u64, name: &str) -> Self {
        let mut batches = Vec::new();
        for e in 0..epochs {
            let mut rng = Stream::new(seed, &format!("{name}/shuffle"), e as u64);
            let mut rows: Vec<usize> = (0..lens.len()).collect();
            rng.shuffle(&mut rows);
            let mut these: Vec<Vec<usize>> = rows
                .chunks_mut(batch * 16)
                .flat_map(|window| {
                    window.sort_by_key(|i| (lens[*i], *i));
                    window.chunks(batch).map(<[usize]>::to_vec).collect::<Vec<_>>()
                })
                .collect();
            rng.shuffle(&mut these);
            batches.extend(these);
        }
        Self { batches }
    }
}

impl Batches for Epochs {
    fn steps(&self) -> u64 {
        self.batches.len() as u64
    }
    fn rows(&self, step: u64) -> Vec<usize> {
        self.batches[step as usize].clone()
    }
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
    /// What the head reads and its number of classes; `None` trains the language model.
    pub head: Option<(&'a FeatureSpec, usize)>,
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
    /// The module's by full name (`<site>.lora_a`, ...), and `head.weight`, `head.bias`.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// Where the numbers of a sparse delta stand.
    pub indices: Indices,
    /// Numbers that were trained.
    pub trainable: usize,
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

const HEAD_WEIGHT: &str = "head.weight";
const HEAD_BIAS: &str = "head.bias";

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
    let indices = indices(job)?;
    let mut optim = parameters(job, &indices).map_err(|e| failed(job.name, 0, &e))?;
    let mut losses: Vec<f32> = Vec::new();
    let (mut tokens, mut earlier) = (0, Duration::ZERO);
    if let Some((path, _)) = job.checkpoint.as_ref().filter(|(p, _)| p.exists()) {
        (tokens, earlier, losses) = load(job, path, &mut optim)?;
    }
    let begin = Instant::now();
    let (steps, resumed) = (job.batches.steps(), tokens);
    let warmup = (job.hyper.warmup * steps as f32).round() as u64;
    while optim.step < steps {
        let step = optim.step;
        let rows = job.batches.rows(step);
        let (loss, grads) = gradients(job, &rows, &optim, &indices).map_err(|e| failed(job.name, step, &e))?;
        if !loss.is_finite() {
            return Err(failed(job.name, step, &candle_core::Error::Msg(format!("the loss is {loss}"))));
        }
        let lr = job.hyper.lr * job.hyper.schedule.factor(step, warmup, steps);
        optim.step(&grads, lr, job.hyper.clip).map_err(|e| failed(job.name, step, &e))?;
        tokens += rows.iter().map(|i| job.examples.tokens(*i) as u64).sum::<u64>();
        losses.push(loss);
        let rate = (tokens - resumed) as f64 / begin.elapsed().as_secs_f64();
        progress(Progress { step: optim.step, steps, loss, rate });
        let stop = job.stop.load(Ordering::Relaxed) && optim.step < steps;
        if let Some((path, every)) = &job.checkpoint
            && (stop || (*every > 0 && optim.step % every == 0 && optim.step < steps))
        {
            save(job, path, &optim, (tokens, earlier + begin.elapsed()), &losses)?;
        }
        if stop {
            return Ok(Outcome::Stopped);
        }
    }
    let tail = &losses[losses.len() - losses.len().div_ceil(10)..];
    let kept = |e: candle_core::Error| failed(job.name, optim.step, &e);
    let mut all = adapters(job, &optim, &indices).map_err(kept)?.tensors;
    for name in [HEAD_WEIGHT, HEAD_BIAS] {
        all.extend(optim.params.get(name).map(|p| (name.to_owned(), p.var.as_tensor().clone())));
    }
    let mut tensors = BTreeMap::new();
    for (name, t) in all {
        tensors.insert(name, (t.dims().to_vec(), numbers(&t).map_err(kept)?));
    }
    Ok(Outcome::Done(Trained {
        tensors,
        trainable: optim.trainable(),
        indices,
        tokens,
        seconds: (earlier + begin.elapsed()).as_secs_f64(),
        loss: tail.iter().sum::<f32>() / tail.len().max(1) as f32,
    }))
}

/// Sites of the job.
fn sites(job: &Job<'_>) -> Result<Vec<Site>> {
    job.sites.iter().map(|s| Site::parse(&job.decoder.spec, s)).collect()
}

/// Where a sparse delta's numbers stand: as in what the job starts from, or chosen by the spec's rule.
fn indices(job: &Job<'_>) -> Result<Indices> {
    match job.start.filter(|s| !s.indices.is_empty()) {
        Some(start) => Ok(start.indices.clone()),
        None => pet::choose::for_job(job, &sites(job)?),
    }
}

/// Variables: where each kind starts ([`pet::fresh`]), the head zero; or whatever the job starts from.
fn parameters(job: &Job<'_>, indices: &Indices) -> candle_core::Result<AdamW> {
    let mut optim = AdamW::new(job.hyper.adamw);
    let known = |name: &str| job.start.and_then(|s| s.tensors.get(name));
    let mut add = |name: String, shape: &[usize], mut values: Vec<f32>, lr: f32| -> candle_core::Result<()> {
        if let Some((_, old)) = known(&name) {
            // A head that has grown keeps its old rows.
            let n = old.len().min(values.len());
            values[..n].copy_from_slice(&old[..n]);
        }
        optim.add(name, Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)?, lr);
        Ok(())
    };
    let sites = sites(job).map_err(|e| candle_core::Error::Msg(e.to_string()))?;
    let start = pet::fresh(&job.decoder.base, job.pet, &sites, indices, (job.seed, job.name), |n| known(n).is_some());
    for x in start {
        add(x.name, &x.shape, x.values, 1.0)?;
    }
    if let Some((feature, classes)) = job.head {
        let dim = feature.dim(job.decoder.spec.hidden);
        add(HEAD_WEIGHT.into(), &[classes, dim], vec![0.0; classes * dim], job.hyper.head_lr)?;
        add(HEAD_BIAS.into(), &[classes], vec![0.0; classes], job.hyper.head_lr)?;
    }
    Ok(optim)
}

fn adapters(job: &Job<'_>, optim: &AdamW, indices: &Indices) -> candle_core::Result<Adapters> {
    let sites = sites(job).map_err(|e| candle_core::Error::Msg(e.to_string()))?;
    let tensors = pet::in_force(job.pet, &job.decoder.base, &sites, optim)?;
    Ok(Adapters { tensors, indices: indices.clone(), ..Adapters::none(job.pet.clone()) })
}

/// Fewest tokens of a shard: below, a matrix product spends its time on arranging the weights.
const SHARD_TOKENS: usize = 64;

/// Loss and gradients of one batch.
///
/// The batch is cut into shards that are computed side by side, each on one thread: threads then
/// meet once a step, not at every product. How it is cut depends on the batch alone, and sums are
/// taken in order, so the result does not depend on the number of threads.
fn gradients(
    job: &Job<'_>,
    rows: &[usize],
    optim: &AdamW,
    indices: &Indices,
) -> candle_core::Result<(f32, BTreeMap<String, Vec<f32>>)> {
    let tokens: usize = rows.iter().map(|i| job.examples.tokens(*i)).sum();
    let most = (tokens / SHARD_TOKENS).clamp(1, 64).min(rows.len());
    // A power of two divides evenly over the usual numbers of processors.
    let shards: Vec<&[usize]> = rows.chunks(rows.len().div_ceil(1 << most.ilog2())).collect();
    let all = weight(job, rows);
    let one = |(i, rows): (usize, &&[usize])| {
        shard(job, rows, weight(job, rows) / all, (i, shards.len()), (optim, &adapters(job, optim, indices)?))
    };
    let parts: Vec<_> = job.pool.install(|| shards.par_iter().enumerate().map(one).collect());
    let mut parts = parts.into_iter();
    let (mut loss, mut grads) = parts.next().unwrap_or_else(|| candle_core::bail!("a batch without rows"))?;
    for part in parts {
        let (l, g) = part?;
        loss += l;
        for (sum, g) in grads.values_mut().zip(g.values()) {
            sum.iter_mut().zip(g).for_each(|(s, g)| *s += g);
        }
    }
    Ok((loss, grads))
}

/// How much rows count in a batch's mean: each class once, each answer token once.
fn weight(job: &Job<'_>, rows: &[usize]) -> f64 {
    let targets = |i: &usize| match job.examples.target(*i) {
        Target::Class(_) => 1,
        Target::Completion(t) => t.len(),
    };
    rows.iter().map(targets).sum::<usize>() as f64
}

/// `Σ (∂loss/∂W)²` over some rows of the job, one by one, for every weight that `probe` has a sum of;
/// the head is the job's, trained alone for at most 50 steps first, since a zero head sends no
/// gradient into the base.
pub(crate) fn fisher(job: &Job<'_>, sites: &[Site], probe: &Arc<Probe>) -> Result<()> {
    let head = |e: candle_core::Error| failed(job.name, 0, &e);
    let mut alone = Job { sites: &[], start: None, checkpoint: None, ..*job };
    let few = FirstSteps(job.batches, 50);
    alone.batches = &few;
    let start = match (job.head, fit(&alone, &mut |_| {})?) {
        (None, _) | (_, Outcome::Stopped) => None,
        (Some(_), Outcome::Done(t)) => Some(t),
    };
    let job = Job { sites: &[], start: start.as_ref(), checkpoint: None, ..*job };
    let optim = parameters(&job, &Indices::new()).map_err(head)?;
    let one = || Var::zeros(1, candle_core::DType::F32, &Device::Cpu);
    let mut listening = Adapters { probe: Some(probe.clone()), ..Adapters::none(job.pet.clone()) };
    for layer in sites.iter().map(|s| s.layer).collect::<std::collections::BTreeSet<_>>() {
        let name = format!("{}.{PROBE}", Site { layer, place: Place::Q });
        listening.tensors.insert(name, one().map_err(head)?.as_tensor().clone());
    }
    let rows = job.examples.len();
    for i in (0..rows).step_by(rows.div_ceil(FISHER_ROWS)) {
        shard(&job, &[i], 1.0, (0, 1), (&optim, &listening)).map_err(head)?;
    }
    Ok(())
}

/// Rows that the empirical Fisher information is taken from.
const FISHER_ROWS: usize = 64;

/// The first steps of some batches.
struct FirstSteps<'a>(&'a dyn Batches, u64);

impl Batches for FirstSteps<'_> {
    fn steps(&self) -> u64 {
        self.0.steps().min(self.1)
    }
    fn rows(&self, step: u64) -> Vec<usize> {
        self.0.rows(step)
    }
}

/// Loss and gradients of the `i`-th of `n` shards, times its part of the batch.
fn shard(
    job: &Job<'_>,
    rows: &[usize],
    part: f64,
    (i, n): (usize, usize),
    (optim, adapters): (&AdamW, &Adapters),
) -> candle_core::Result<(f32, BTreeMap<String, Vec<f32>>)> {
    let d = job.decoder;
    let h = d.spec.hidden;
    let lens: Vec<usize> = rows.iter().map(|i| job.examples.tokens(*i)).collect();
    let tokens: usize = lens.iter().sum();
    let mut states = Vec::with_capacity(tokens * h);
    rows.iter().for_each(|i| job.examples.states(*i, &mut states));
    let hidden = Tensor::from_vec(states, (tokens, h), &Device::Cpu)?;
    let batch = Ragged::new(&d.spec, &lens);
    let how = Training {
        threads: if n == 1 { d.threads } else { 1 },
        activation_bytes: Some(job.hyper.activation_bytes / n.min(d.threads)),
        dropout: (job.hyper.dropout > 0.0).then(|| Dropout {
            p: job.hyper.dropout,
            seed: job.seed,
            name: format!("{}/{i}", job.name),
            step: optim.step,
        }),
    };
    let y = d.forward(&hidden, &batch, adapters, &how)?;
    let head: Vec<&Var> =
        [HEAD_WEIGHT, HEAD_BIAS].iter().filter_map(|n| optim.params.get(*n)).map(|p| &p.var).collect();
    let loss = match job.head {
        Some((feature, _)) => class_loss(job, feature, rows, &batch, &y, &head),
        None => completion_loss(job, rows, &batch, &y, how.threads),
    };
    let loss = (loss? * part)?;
    let store = loss.backward()?;
    let mut grads = BTreeMap::new();
    for (name, p) in &optim.params {
        if let Some(g) = store.get(&p.var) {
            grads.insert(name.clone(), numbers(g)?);
        }
    }
    Ok((loss.to_scalar()?, grads))
}

fn class_loss(
    job: &Job<'_>,
    feature: &FeatureSpec,
    rows: &[usize],
    batch: &Ragged,
    y: &Tensor,
    head: &[&Var],
) -> candle_core::Result<Tensor> {
    let d = job.decoder;
    let x = match feature.norm {
        StateNorm::Output => d.final_norm(y)?,
        StateNorm::Rms => rms_norm(y, &Arc::new(vec![1.0; d.spec.hidden]), 1e-6)?,
        StateNorm::None => y.clone(),
    };
    let mut ranges = Vec::with_capacity(rows.len() * feature.parts.len());
    for (i, r) in rows.iter().zip(batch.rows()) {
        let parts = job.examples.ranges(*i).into_iter().zip(&feature.parts);
        ranges.extend(parts.map(|(x, part)| (r.start + x.start..r.start + x.end, part.pool.reduce())));
    }
    let f = pool(&x, ranges)?.reshape((rows.len(), feature.dim(d.spec.hidden)))?;
    let logits = f.matmul(&head[0].as_tensor().t()?)?.broadcast_add(head[1].as_tensor())?;
    let classes: Vec<u32> = rows
        .iter()
        .map(|i| match job.examples.target(*i) {
            Target::Class(c) => c,
            Target::Completion(_) => 0,
        })
        .collect();
    candle_nn::loss::cross_entropy(&logits, &Tensor::from_vec(classes, rows.len(), &Device::Cpu)?)
}

fn completion_loss(
    job: &Job<'_>,
    rows: &[usize],
    batch: &Ragged,
    y: &Tensor,
    threads: usize,
) -> candle_core::Result<Tensor> {
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
    // Only the rows that predict something need the norm and the head.
    let states = y.index_select(&Tensor::from_vec(at, n, &Device::Cpu)?, 0)?;
    lm_loss(&job.decoder.final_norm(&states)?, job.decoder.output(), targets, threads)
}

/// What a checkpoint must have been made for.
fn identity(job: &Job<'_>) -> String {
    let h = job.hyper;
    let text = format!(
        "{} {} {:?} {:?} {:?} {h:?} {} {}",
        job.name,
        job.seed,
        job.pet.to_string(),
        job.sites,
        job.head.map(|(f, c)| (f.clone(), c)),
        job.examples.len(),
        job.batches.steps()
    );
    conpet_formats::fingerprint::file_digest(text.as_bytes())
}

fn save(
    job: &Job<'_>,
    path: &std::path::Path,
    optim: &AdamW,
    (tokens, time): (u64, Duration),
    losses: &[f32],
) -> Result<()> {
    let mut w = TensorsWriter::new();
    for (name, p) in &optim.params {
        let v = numbers(p.var.as_tensor()).map_err(|e| failed(job.name, optim.step, &e))?;
        w.add_f32(&format!("p.{name}"), p.var.dims(), &v)?;
        w.add_f32(&format!("m.{name}"), p.var.dims(), &p.m)?;
        w.add_f32(&format!("v.{name}"), p.var.dims(), &p.v)?;
    }
    let halves = |v: u64| [(v >> 31) as i32, (v & 0x7fff_ffff) as i32];
    let counts = [halves(optim.step), halves(tokens), halves(time.as_millis() as u64)].concat();
    w.add_i32("counts", &[counts.len()], &counts)?;
    w.add_f32("losses", &[losses.len()], losses)?;
    w.add_u8("identity", &[64], identity(job).as_bytes())?;
    let bytes = w.finish()?;
    let digest = conpet_formats::fingerprint::file_digest(&bytes);
    conpet_formats::fs::write_atomic(path, |out| {
        let io = |e| Error::io("write", e);
        out.write_all(digest.as_bytes()).map_err(io)?;
        out.write_all(&bytes).map_err(io)
    })
}

fn load(job: &Job<'_>, path: &std::path::Path, optim: &mut AdamW) -> Result<(u64, Duration, Vec<f32>)> {
    let file = conpet_formats::fs::read(path)?;
    let damaged = || {
        Error::new(Code::Digest, "the checkpoint is damaged")
            .in_file(path)
            .hint("remove it to train this task from its start")
    };
    let (digest, bytes) = file.split_at_checked(64).ok_or_else(damaged)?;
    if conpet_formats::fingerprint::file_digest(bytes).as_bytes() != digest {
        return Err(damaged());
    }
    let t = Tensors::parse_unscanned(bytes).map_err(|e| e.in_file(path))?;
    let get = |name: &str| t.get(name).ok_or_else(damaged);
    if get("identity")?.data != identity(job).as_bytes() {
        return Err(Error::new(Code::Value, "the checkpoint belongs to other data or other settings")
            .in_file(path)
            .hint("resume with the same command, or remove the checkpoint to start over"));
    }
    for (name, p) in &mut optim.params {
        let v = get(&format!("p.{name}"))?.to_f32();
        let tensor = Tensor::from_vec(v, p.var.shape(), &Device::Cpu);
        tensor.and_then(|x| p.var.set(&x)).map_err(|e| failed(job.name, 0, &e))?;
        p.m = get(&format!("m.{name}"))?.to_f32();
        p.v = get(&format!("v.{name}"))?.to_f32();
    }
    let counts = get("counts")?.to_i32();
    let [a, b, c, d, e, f] = counts.as_slice() else { return Err(damaged()) };
    let whole = |hi: i32, lo: i32| (hi as u64) << 31 | lo as u64;
    optim.step = whole(*a, *b);
    Ok((whole(*c, *d), Duration::from_millis(whole(*e, *f)), get("losses")?.to_f32()))
}

#[cfg(test)]
mod tests;
