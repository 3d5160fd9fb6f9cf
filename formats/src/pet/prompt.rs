//! Prompt tuning (Lester et al. 2021, arXiv 2104.08691): n learned rows before the input's embeddings.
//!
//! The rows enter layer 0 as the embeddings of n tokens at positions 0..n would; the input begins at
//! position n. A module holds them in `token_embd.weight.prompt`, `[n, hidden]`. It acts on layer 0, so
//! a bundle that has one shares no trunk (`trunk` 0). The rows come before every token, so what they
//! become in each layer does not depend on the input: the runtime computes their keys and values once.

use crate::{Code, Error, Result};

/// What follows the site's name in the name of the rows.
pub const ROWS: &str = "prompt";

/// A prompt's hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt {
    /// Rows n, 1..=4096.
    pub rows: usize,
}

impl Prompt {
    /// Rows within bounds.
    ///
    /// # Errors
    /// If they are not.
    pub fn check(&self) -> Result<()> {
        if self.rows == 0 || self.rows > 4096 {
            return Err(Error::new(Code::Value, format!("a prompt of {} rows is not in 1..=4096", self.rows)));
        }
        Ok(())
    }
}

/// Scalar reference: the states that enter layer 0, `[n + tokens, hidden]`.
pub fn apply_reference(rows: &[f32], embedded: &[f32]) -> Vec<f32> {
    [rows, embedded].concat()
}
