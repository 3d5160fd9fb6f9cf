//! Cost of a run.

use serde::{Deserialize, Serialize};

/// Cost of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// Total seconds, including trunk passes and scoring.
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
    /// Cost of each training, in order.
    #[serde(default)]
    pub stages: Vec<StageCost>,
}

/// Cost of one training in a stage (a method may train more than once in a stage).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageCost {
    /// Optimizer steps.
    pub steps: u64,
    /// Rows passed forward and backward.
    pub rows: u64,
    /// Tokens of these rows.
    pub tokens: u64,
}
