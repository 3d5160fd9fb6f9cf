//! Training: from what a method chooses to a job, with the settings, the decoder and the threads filled in.

use super::{Event, ModulePlan, Services};
use crate::decoder::WeightMode;
use crate::fit::{
    self, Batches, Epochs, Examples, Gradients, Hyper, Job, Outcome, Plain, Recipe, Trained, features, fisher,
};
use crate::optim::{AdamWConfig, Schedule};
use crate::settings::range::{any, at_least_one, not_negative, part, positive};
use crate::settings::settings;
use conpet_formats::Result;
use conpet_formats::feature::FeatureSpec;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// Most bytes of dense frozen weights that `--weights auto` spends.
const DENSE_MOST: usize = 1 << 30;

settings! { "Training" Settings Flags {
    /// Passes over a task's rows.
    epochs: usize = 3, at_least_one();
    /// Rows in a batch.
    batch: usize = 16, at_least_one();
    /// Peak learning rate of the module.
    lr: f64 = 1e-3, positive();
    /// Learning rate of the head, as a multiple of lr.
    head_lr: f64 = 3.0, positive();
    /// Decoupled weight decay.
    weight_decay: f64 = 0.01, not_negative();
    /// Epsilon of AdamW.
    adam_eps: f64 = 1e-8, positive();
    /// Part of the steps that warm up.
    warmup: f64 = 0.06, part();
    /// How the learning rate goes after the warm-up.
    schedule: Schedule = Schedule::Cosine, any();
    /// Largest gradient norm; 0 is off.
    clip: f64 = 1.0, not_negative();
    /// Seed of every random stream.
    seed: u64 = 1, any();
    /// Frozen weights while training.
    weights: Weights = Weights::Auto, any();
    /// Activations kept for the backward pass, in MiB; layers that do not fit compute theirs again.
    activations: usize = 512, any();
    /// Steps between checkpoints.
    checkpoint_every: u64 = 50, any();
}}

/// How frozen weights are kept while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weights {
    /// Dense where that takes at most 1 GiB, else as in the file.
    Auto,
    /// As f32: fast.
    Dense,
    /// As in the file: small.
    Quant,
}

impl Weights {
    /// What the decoder is told.
    pub(super) fn mode(self) -> WeightMode {
        match self {
            Self::Auto => WeightMode::Auto(DENSE_MOST),
            Self::Dense => WeightMode::Dense,
            Self::Quant => WeightMode::Quant,
        }
    }
}

/// Something to train: what a method chooses; the rest are the settings.
#[derive(Clone, Copy)]
pub struct Lesson<'a> {
    /// Names its random streams, its checkpoint and its progress.
    pub name: &'a str,
    /// The rows.
    pub data: &'a dyn Examples,
    /// What the head reads, and its classes; `None` trains the language model.
    pub head: Option<(&'a FeatureSpec, usize)>,
    /// Which rows each step sees; `None` is the settings' passes over all rows.
    pub batches: Option<&'a dyn Batches>,
    /// What the module is, and where; `None` is what the settings say.
    pub module: Option<&'a ModulePlan>,
    /// Peak learning rate; `None` is that of the settings.
    pub lr: Option<f64>,
    /// Seed of its random streams; `None` is that of the settings.
    pub seed: Option<u64>,
    /// Module and head to go on from.
    pub start: Option<&'a Trained>,
    /// How the method departs from plain training.
    pub recipe: &'a dyn Recipe,
}

impl<'a> Lesson<'a> {
    /// Plain training.
    pub fn new(name: &'a str, data: &'a dyn Examples, head: Option<(&'a FeatureSpec, usize)>) -> Self {
        Self { name, data, head, batches: None, module: None, lr: None, seed: None, start: None, recipe: &Plain }
    }
}

impl Services<'_> {
    /// Whether labels are told apart by a trained linear head: `--head choice` reads their texts instead,
    /// and there is nothing to train but the module.
    pub fn linear_head(&self) -> bool {
        self.resolved.head.is_linear()
    }

    /// What a head over so many labels reads; `None` if there is none to train.
    pub fn trained_head(&self, classes: usize) -> Option<(FeatureSpec, usize)> {
        (classes > 0 && self.linear_head()).then(|| (self.head_feature().clone(), classes))
    }

    /// Trains.
    ///
    /// # Errors
    /// See [`fit::fit`].
    pub fn fit(&self, l: &Lesson<'_>) -> Result<Outcome> {
        if self.stop.load(Ordering::Relaxed) {
            return Ok(Outcome::Stopped);
        }
        let c = &self.settings.training;
        let epochs = Epochs::new(&lens(l.data), c.batch, c.epochs, l.seed.unwrap_or(c.seed), l.name);
        self.with_job(l, l.batches.unwrap_or(&epochs), |job| fit::fit(job, &mut |p| self.tell(Event::Step(l.name, p))))
    }

    /// Steps of the settings' passes over these rows.
    pub fn epoch_steps(&self, data: &dyn Examples) -> u64 {
        let c = &self.settings.training;
        (data.len().div_ceil(c.batch) * c.epochs) as u64
    }

    /// What the head reads of some rows, `[rows, dim]`, with the lesson's start in force.
    pub fn features(&self, l: &Lesson<'_>, rows: &[usize]) -> Result<Vec<f32>> {
        self.with_job(l, &Epochs::new(&[], 1, 1, 0, l.name), |job| features(job, rows))
    }

    /// The diagonal of the Fisher information at the lesson's start, over some rows.
    pub fn fisher(&self, l: &Lesson<'_>, rows: &[usize]) -> Result<Gradients> {
        self.with_job(l, &Epochs::new(&[], 1, 1, 0, l.name), |job| fisher(job, rows))
    }

    fn with_job<T>(&self, l: &Lesson<'_>, batches: &dyn Batches, f: impl FnOnce(&Job<'_>) -> Result<T>) -> Result<T> {
        let c = &self.settings.training;
        let module = l.module.unwrap_or(self.module());
        let hyper = Hyper {
            lr: l.lr.unwrap_or(c.lr) as f32,
            head_lr: c.head_lr as f32,
            adamw: AdamWConfig {
                eps: c.adam_eps as f32,
                weight_decay: c.weight_decay as f32,
                ..AdamWConfig::default()
            },
            warmup: c.warmup as f32,
            schedule: c.schedule,
            clip: c.clip as f32,
            dropout: self.settings.lora.dropout as f32,
            activation_bytes: c.activations << 20,
        };
        f(&Job {
            decoder: &self.decoder,
            pool: &self.pool,
            examples: l.data,
            batches,
            pet: &module.pet,
            sites: &module.sites,
            head: l.head,
            recipe: l.recipe,
            hyper: &hyper,
            seed: l.seed.unwrap_or(c.seed),
            name: l.name,
            start: l.start,
            checkpoint: Some((self.checkpoint(l.name), c.checkpoint_every)),
            stop: self.stop,
        })
    }

    /// Where an unfinished training of this name is kept.
    pub fn checkpoint(&self, name: &str) -> PathBuf {
        self.work.join(format!("{}.checkpoint", name.replace('/', "-")))
    }

    /// Whether an unfinished training is kept.
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoints().next().is_some()
    }

    /// What a stage's training kept for itself is of no use once the stage is written.
    pub fn forget_checkpoints(&self) {
        self.checkpoints().for_each(|p| drop(std::fs::remove_file(p)));
    }

    fn checkpoints(&self) -> impl Iterator<Item = PathBuf> {
        let entries = std::fs::read_dir(&self.work).into_iter().flatten().flatten().map(|e| e.path());
        entries.filter(|p| p.extension().is_some_and(|x| x == "checkpoint"))
    }
}

/// Tokens of each row.
pub(crate) fn lens(data: &dyn Examples) -> Vec<usize> {
    (0..data.len()).map(|i| data.tokens(i)).collect()
}
