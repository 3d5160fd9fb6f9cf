//! From a method's wish to a training job: the run's settings, decoder and threads, filled in.

use super::{Event, Run};
use crate::fit::{
    self, Batches, Epochs, Examples, Gradients, Hyper, Job, Outcome, Plain, Recipe, Trained, features, fisher,
};
use crate::optim::{AdamWConfig, Schedule};
use conpet_formats::Result;
use conpet_formats::feature::FeatureSpec;
use std::path::PathBuf;
use std::sync::atomic::Ordering;

/// Something to train: what a method chooses; the rest are the run's settings.
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
    /// Module and head to go on from.
    pub start: Option<&'a Trained>,
    /// How the method departs from plain training.
    pub recipe: &'a dyn Recipe,
}

impl<'a> Lesson<'a> {
    /// Plain training.
    pub fn new(name: &'a str, data: &'a dyn Examples, head: Option<(&'a FeatureSpec, usize)>) -> Self {
        Self { name, data, head, batches: None, start: None, recipe: &Plain }
    }
}

impl Run<'_> {
    /// Whether labels are told apart by a trained linear head: `--head choice` reads their texts instead,
    /// and there is nothing to train but the module.
    pub fn linear_head(&self) -> bool {
        self.config.head_kind().is_ok_and(|k| k.is_linear())
    }

    /// What a head over so many labels reads; `None` if there is none to train.
    pub fn trained_head(&self, classes: usize) -> Option<(FeatureSpec, usize)> {
        (classes > 0 && self.linear_head()).then(|| (self.head_feature.clone(), classes))
    }

    /// Trains.
    ///
    /// # Errors
    /// See [`fit::fit`].
    pub fn fit(&self, l: &Lesson<'_>) -> Result<Outcome> {
        if self.stop.load(Ordering::Relaxed) {
            return Ok(Outcome::Stopped);
        }
        let c = &self.config;
        let epochs = Epochs::new(&lens(l.data), c.batch, c.epochs, c.seed, l.name);
        self.with_job(l, l.batches.unwrap_or(&epochs), |job| fit::fit(job, &mut |p| self.tell(Event::Step(l.name, p))))
    }

    /// Steps of the settings' passes over these rows.
    pub fn epoch_steps(&self, data: &dyn Examples) -> u64 {
        (data.len().div_ceil(self.config.batch) * self.config.epochs) as u64
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
        let c = &self.config;
        let hyper = Hyper {
            lr: c.lr as f32,
            head_lr: c.head_lr as f32,
            adamw: AdamWConfig {
                eps: c.adam_eps as f32,
                weight_decay: c.weight_decay as f32,
                ..AdamWConfig::default()
            },
            warmup: c.warmup as f32,
            schedule: if c.schedule == "constant" { Schedule::Constant } else { Schedule::Cosine },
            clip: c.clip as f32,
            dropout: c.dropout as f32,
            activation_bytes: c.activations << 20,
        };
        f(&Job {
            decoder: &self.decoder,
            pool: &self.pool,
            examples: l.data,
            batches,
            pet: &self.pet,
            sites: &self.sites,
            head: l.head,
            recipe: l.recipe,
            hyper: &hyper,
            seed: c.seed,
            name: l.name,
            start: l.start,
            checkpoint: Some((self.checkpoint(l.name), c.checkpoint_every)),
            stop: self.stop,
        })
    }

    /// Where an unfinished training of this name is kept.
    pub(crate) fn checkpoint(&self, name: &str) -> PathBuf {
        self.work.join(format!("{}.checkpoint", name.replace('/', "-")))
    }

    /// What a stage's training kept for itself is of no use once the stage is written.
    pub(super) fn forget_checkpoints(&self) {
        let entries = std::fs::read_dir(&self.work).into_iter().flatten().flatten().map(|e| e.path());
        let gone = entries.filter(|p| p.extension().is_some_and(|x| x == "checkpoint"));
        gone.for_each(|p| drop(std::fs::remove_file(p)));
    }
}

/// Tokens of each row.
pub(crate) fn lens(data: &dyn Examples) -> Vec<usize> {
    (0..data.len()).map(|i| data.tokens(i)).collect()
}
