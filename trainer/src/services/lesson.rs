//! Training: turns what a method chooses into a job, with the settings, the decoder and the threads filled in.

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
    /// Fraction of the steps that are warm-up.
    warmup: f64 = 0.06, part();
    /// Schedule of the learning rate after the warm-up.
    schedule: Schedule = Schedule::Cosine, any();
    /// Largest gradient norm; 0 turns clipping off.
    clip: f64 = 1.0, not_negative();
    /// Seed of every random stream.
    seed: u64 = 1, any();
    /// How frozen weights are held in memory while training.
    weights: Weights = Weights::Auto, any();
    /// Activations kept for the backward pass, in MiB; layers that do not fit recompute theirs.
    activations: usize = 512, any();
    /// Steps between checkpoints.
    checkpoint_every: u64 = 50, any();
}}

/// How frozen weights are held in memory while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Weights {
    /// Dense if that takes at most 1 GiB, else as in the file.
    Auto,
    /// As f32: fast.
    Dense,
    /// As in the file: small.
    Quant,
}

impl Weights {
    /// The decoder's weight mode.
    pub(super) fn mode(self) -> WeightMode {
        match self {
            Self::Auto => WeightMode::Auto(DENSE_MOST),
            Self::Dense => WeightMode::Dense,
            Self::Quant => WeightMode::Quant,
        }
    }
}

/// A training that a method asks for; everything else is taken from the settings.
#[derive(Clone, Copy)]
pub struct Lesson<'a> {
    /// Name of its random streams, checkpoint and progress.
    pub name: &'a str,
    /// The rows.
    pub data: &'a dyn Examples,
    /// The head's feature and number of classes; `None` trains the language model.
    pub head: Option<(&'a FeatureSpec, usize)>,
    /// Which rows each step trains on; `None` takes the settings' passes over all rows.
    pub batches: Option<&'a dyn Batches>,
    /// Spec and sites of the module; `None` takes the settings'.
    pub module: Option<&'a ModulePlan>,
    /// Peak learning rate; `None` takes the settings'.
    pub lr: Option<f64>,
    /// Seed of its random streams; `None` takes the settings'.
    pub seed: Option<u64>,
    /// Module and head to start from.
    pub start: Option<&'a Trained>,
    /// How the method departs from plain training.
    pub recipe: &'a dyn Recipe,
}

impl<'a> Lesson<'a> {
    /// A lesson with plain training.
    pub fn new(name: &'a str, data: &'a dyn Examples, head: Option<(&'a FeatureSpec, usize)>) -> Self {
        Self { name, data, head, batches: None, module: None, lr: None, seed: None, start: None, recipe: &Plain }
    }
}

impl Services<'_> {
    /// Whether a linear head is trained. With `--head choice` labels are scored by their texts, and only the
    /// module is trained.
    pub fn linear_head(&self) -> bool {
        self.resolved.head.is_linear()
    }

    /// Feature and number of classes of a head over this many labels; `None` if no head is trained.
    pub fn trained_head(&self, classes: usize) -> Option<(FeatureSpec, usize)> {
        (classes > 0 && self.linear_head()).then(|| (self.head_feature().clone(), classes))
    }

    /// Runs a lesson.
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

    /// Number of steps of the settings' passes over these rows.
    pub fn epoch_steps(&self, data: &dyn Examples) -> u64 {
        let c = &self.settings.training;
        (data.len().div_ceil(c.batch) * c.epochs) as u64
    }

    /// The head's features of some rows, `[rows, dim]`, with the lesson's start in force.
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

    /// Path of the checkpoint of this name.
    pub fn checkpoint(&self, name: &str) -> PathBuf {
        self.work.join(format!("{}.checkpoint", name.replace('/', "-")))
    }

    /// Whether there is a checkpoint of an unfinished training.
    pub fn has_checkpoint(&self) -> bool {
        self.checkpoints().next().is_some()
    }

    /// Deletes the checkpoints, which are useless once the stage is written.
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
