//! A tokenized input.

use conpet_formats::ngrams::Words;
use std::borrow::Borrow;
use std::ops::Range;

/// A text and its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The text as tokenized.
    pub text: String,
    /// Its tokens; never empty.
    pub tokens: Vec<u32>,
    /// Each token's byte range in `text`.
    pub offsets: Vec<Range<usize>>,
}

impl Prompt {
    /// What n-grams read of it.
    pub fn words(&self) -> Words<'_> {
        Words { tokens: &self.tokens, text: &self.text }
    }

    /// Its tokens, each with its position.
    pub fn placed(&self) -> impl Iterator<Item = (u32, usize)> + '_ {
        self.tokens.iter().copied().zip(0..)
    }
}

/// Divides prompts into batches of at most `tokens` tokens; a longer prompt gets a batch of its own.
pub fn batches<P: Borrow<Prompt>>(prompts: &[P], tokens: usize) -> impl Iterator<Item = &[P]> {
    let mut rest = prompts;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fit = rest
            .iter()
            .take_while(|p| {
                sum += (*p).borrow().tokens.len();
                sum <= tokens
            })
            .count();
        if rest.is_empty() {
            return None;
        }
        let (head, tail) = rest.split_at(fit.max(1));
        rest = tail;
        Some(head)
    })
}
