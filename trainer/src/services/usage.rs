//! What a run used.

use serde::{Deserialize, Serialize};

/// What a run used.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Seconds in all, trunk passes and scoring included.
    pub seconds: f64,
    /// Seconds of training steps alone.
    pub training_seconds: f64,
    /// Tokens trained on.
    pub trained_tokens: u64,
    /// Most parameters trained at once (module and head).
    pub trainable: u64,
    /// Parameters of the base.
    pub base_parameters: u64,
    /// Most resident memory of the process, in bytes.
    pub peak_rss: u64,
    /// Size of the bundle's file, in bytes.
    pub bundle_bytes: u64,
    /// What each training run did, in order.
    #[serde(default)]
    pub stages: Vec<StageCost>,
}

/// What the training of one stage did (several entries for a method that trains twice in a stage).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageCost {
    /// Optimizer steps.
    pub steps: u64,
    /// Rows passed forward and back.
    pub rows: u64,
    /// Their tokens.
    pub tokens: u64,
}
