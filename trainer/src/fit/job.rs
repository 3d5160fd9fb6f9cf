//! A training job: what to train, on what, and how it ends.

use super::batches::Batches;
use super::recipe::Recipe;
use super::trained::Trained;
use crate::decoder::Decoder;
use crate::optim::{AdamWConfig, Schedule};
use conpet_formats::feature::FeatureSpec;
use conpet_formats::pet::PetSpec;
use conpet_formats::{Code, Error};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// The training target of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// A class: a row of the head.
    Class(u32),
    /// Tokens to predict: (position whose state predicts, token).
    Completion(Vec<(usize, u32)>),
}

/// Rows to train on.
pub trait Examples: Sync {
    /// Number of rows.
    fn len(&self) -> usize;
    /// True if there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Number of tokens of a row.
    fn tokens(&self, i: usize) -> usize;
    /// Appends a row's states after the trunk, `[tokens, hidden]`.
    fn states(&self, i: usize, out: &mut Vec<f32>);
    /// The target of a row.
    fn target(&self, i: usize) -> Target;
    /// For each part of the head's feature, the row's tokens that it pools.
    fn ranges(&self, i: usize) -> Vec<Range<usize>>;
}

/// The optimizer's hyper-parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Hyper {
    /// Learning rate of the module.
    pub lr: f32,
    /// Learning rate of the head, as a multiple of `lr`.
    pub head_lr: f32,
    /// AdamW.
    pub adamw: AdamWConfig,
    /// Linear warm-up, as a fraction of all steps.
    pub warmup: f32,
    /// Learning rate schedule after the warm-up.
    pub schedule: Schedule,
    /// Largest global gradient norm; 0 turns clipping off.
    pub clip: f32,
    /// Dropout of the LoRA's inputs.
    pub dropout: f32,
    /// Bytes of activations kept for the backward pass; the rest is recomputed.
    pub activation_bytes: usize,
}

/// A training job.
#[derive(Clone)]
pub struct Job<'a> {
    /// The frozen branch layers.
    pub decoder: &'a Decoder,
    /// The threads to compute on.
    pub pool: &'a rayon::ThreadPool,
    /// The rows.
    pub examples: &'a dyn Examples,
    /// Which rows each step trains on.
    pub batches: &'a dyn Batches,
    /// The module's spec.
    pub pet: &'a PetSpec,
    /// Full names of the sites; empty trains the head alone.
    pub sites: &'a [String],
    /// The head's feature and number of classes (0 for a recipe that needs only the features); `None` trains
    /// the language model.
    pub head: Option<(&'a FeatureSpec, usize)>,
    /// How the method departs from plain training.
    pub recipe: &'a dyn Recipe,
    /// The optimizer.
    pub hyper: &'a Hyper,
    /// Seed of all random streams.
    pub seed: u64,
    /// Name of the job, for its random streams and messages.
    pub name: &'a str,
    /// Module and head to start from.
    pub start: Option<&'a Trained>,
    /// Where to save the state of an unfinished run, and after how many steps each.
    pub checkpoint: Option<(PathBuf, u64)>,
    /// Set to stop after the current step.
    pub stop: &'a AtomicBool,
}

/// How a run ended.
#[derive(Debug)]
pub enum Outcome {
    /// Trained to the end.
    Done(Trained),
    /// Stopped; it can be continued from the checkpoint, if one was asked for.
    Stopped,
}

/// Progress after a step.
#[derive(Debug, Clone, Copy)]
pub struct Progress {
    /// Steps done.
    pub step: u64,
    /// Number of steps.
    pub steps: u64,
    /// Loss of this step.
    pub loss: f32,
    /// Tokens per second so far.
    pub rate: f64,
}

/// The error for a failed step.
pub(super) fn failed(name: &str, step: u64, e: &candle_core::Error) -> Error {
    // Only the first line: candle adds a backtrace.
    let text = e.to_string();
    Error::new(
        Code::Value,
        format!("training {name} failed at step {step}: {}", text.lines().next().unwrap_or_default()),
    )
    .hint("lower --lr, or shorten the rows; the last checkpoint is intact")
}
