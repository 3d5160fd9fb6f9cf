//! What to train, on what, and how a run ends.

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
    /// Learning rate of the module.
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
    /// Threads that compute.
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
    /// Module and head to start from.
    pub start: Option<&'a Trained>,
    /// Where to keep the state of an unfinished run, and every how many steps.
    pub checkpoint: Option<(PathBuf, u64)>,
    /// Set to stop after the step under way.
    pub stop: &'a AtomicBool,
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

/// A failure of the graph, in words.
pub(super) fn failed(name: &str, step: u64, e: &candle_core::Error) -> Error {
    // Only the first line: candle adds a backtrace.
    let text = e.to_string();
    Error::new(
        Code::Value,
        format!("training {name} failed at step {step}: {}", text.lines().next().unwrap_or_default()),
    )
    .hint("lower --lr, or shorten the rows; the last checkpoint is intact")
}
