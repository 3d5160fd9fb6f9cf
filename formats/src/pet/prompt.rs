//! Prompt tuning (Lester et al. 2021, arXiv 2104.08691): n learned rows before the input's embeddings.
//!
//! The rows enter layer 0 as the embeddings of n tokens at positions 0..n would; the input begins at
//! position n. A module holds them in `token_embd.weight.prompt`, `[n, hidden]`. It acts on layer 0, so
//! a bundle that has one shares no trunk (`trunk` 0). The rows come before every token, so what they
//! become in each layer does not depend on the input: the runtime computes their keys and values once.

use super::kind::Kind;
use super::options::Options;
use super::point::Point;
use super::site::{Place, Places};
use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};

/// What follows the site's name in the name of the rows.
pub const ROWS: &str = "prompt";

/// A prompt's hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prompt {
    /// Rows n, 1..=4096.
    pub rows: usize,
}

impl Default for Prompt {
    fn default() -> Self {
        Self { rows: 16 }
    }
}

impl Kind for Prompt {
    fn about(&self) -> &'static str {
        "Learned input rows, Lester et al. 2021."
    }

    fn syntax(&self) -> &'static str {
        "n="
    }

    fn read(&mut self, options: &mut Options<'_>) -> Result<()> {
        options.number("n", &mut self.rows)
    }

    fn options(&self) -> Vec<String> {
        vec![format!("n={}", self.rows)]
    }

    fn check(&self) -> Result<()> {
        if self.rows == 0 || self.rows > 4096 {
            return Err(Error::new(Code::Value, format!("a prompt of {} rows is not in 1..=4096", self.rows)));
        }
        Ok(())
    }

    fn default_places(&self) -> Places {
        Places::of(&[Place::Embedding])
    }

    fn acts_on_input(&self) -> bool {
        true
    }

    /// Nowhere: the rows are part of the input.
    fn acts_at(&self, _point: Point) -> Option<Place> {
        None
    }

    fn tensors(&self, spec: &ModelSpec, _place: Place) -> Vec<(&'static str, Vec<usize>)> {
        vec![(ROWS, vec![self.rows, spec.hidden])]
    }

    fn resize(&mut self, n: usize) -> bool {
        self.rows = n;
        true
    }

    fn products(&self) -> &'static [&'static str] {
        &[ROWS]
    }

    fn blends(&self) -> std::result::Result<(), &'static str> {
        Err("puts learned rows before the input, which shift its positions: two modules' rows cannot stand at the \
             same ones, each weighed")
    }
}

/// Scalar reference: the states that enter layer 0, `[n + tokens, hidden]`.
pub fn apply_reference(rows: &[f32], embedded: &[f32]) -> Vec<f32> {
    [rows, embedded].concat()
}
