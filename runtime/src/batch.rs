//! A batch: spans of several sequences, one after another, without padding.

use crate::blend::Blend;
use crate::kv::Kv;

/// The tokens of one sequence in a batch.
#[derive(Debug)]
pub struct Span<'a> {
    /// New tokens of the sequence.
    pub tokens: usize,
    /// The cache that these tokens continue; it grows by `tokens`. Without one, they attend only to each other.
    pub kv: Option<&'a mut Kv>,
    /// The blend in force for these tokens.
    pub blend: &'a Blend,
}

impl<'a> Span<'a> {
    /// A span without a cache, for classification and features.
    pub fn once(tokens: usize, blend: &'a Blend) -> Self {
        Self { tokens, kv: None, blend }
    }

    /// Tokens of the sequence before this span.
    pub(crate) fn past(&self) -> usize {
        self.kv.as_ref().map_or(0, |kv| kv.len())
    }
}
