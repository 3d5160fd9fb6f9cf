//! Tokens that are found in a text before it is cut into words: control tokens, and those that a file defines.

use super::keys::Keys;
use super::vocab::{TokenKind, Vocab};
use crate::error::Result;
use std::ops::Range;

/// Control, unknown and user-defined tokens.
#[derive(Debug)]
pub(super) struct Specials {
    /// Sorted by first byte and then by falling length.
    tokens: Vec<u32>,
    /// For each first byte, the range of its tokens.
    start: Box<[Range<usize>; 256]>,
    /// Swallow the white space before them.
    left: Vec<u32>,
    /// Swallow the white space after them.
    right: Vec<u32>,
}

/// A special token in a text.
pub(super) struct Found {
    pub(super) token: u32,
    /// Its spelling and the white space that it swallows.
    pub(super) range: Range<usize>,
}

impl Specials {
    pub(super) fn read(keys: &Keys<'_>, vocab: &Vocab) -> Result<Self> {
        let special = |t: &u32| !matches!(vocab.kind(*t), TokenKind::Normal | TokenKind::Byte | TokenKind::Unused);
        let mut tokens: Vec<u32> =
            (0..vocab.len() as u32).filter(special).filter(|t| !vocab.bytes(*t).is_empty()).collect();
        tokens.sort_by_key(|t| (vocab.bytes(*t)[0], std::cmp::Reverse(vocab.bytes(*t).len())));
        let first = |t: &u32| usize::from(vocab.bytes(*t)[0]);
        let start = Box::new(std::array::from_fn(|b| {
            tokens.partition_point(|s| first(s) < b)..tokens.partition_point(|s| first(s) <= b)
        }));
        let (left, right) = swallowing(keys, vocab, &tokens)?;
        Ok(Self { tokens, start, left, right })
    }

    /// The first special token at or after `from`, the longest if several start there. Control tokens do not
    /// count in the speakers' `words`, and no special token counts across their borders.
    pub(super) fn next(&self, vocab: &Vocab, text: &str, from: usize, words: Option<&[Range<usize>]>) -> Option<Found> {
        let bytes = text.as_bytes();
        let whole = 0..bytes.len();
        let mut words = words.unwrap_or(std::slice::from_ref(&whole)).iter().skip_while(|w| w.end <= from).peekable();
        for at in from..bytes.len() {
            while words.next_if(|w| w.end <= at).is_some() {}
            let here = &self.tokens[self.start[usize::from(bytes[at])].clone()];
            if here.is_empty() {
                continue;
            }
            let said = words.peek().is_some_and(|w| w.contains(&at));
            let limit = words.peek().map_or(bytes.len(), |w| if said { w.end } else { w.start });
            let fits = |t: &&u32| {
                let spoken = !said || vocab.kind(**t) == TokenKind::User;
                spoken && bytes[at..limit].starts_with(vocab.bytes(**t))
            };
            if let Some(token) = here.iter().find(fits).copied() {
                return Some(Found { token, range: self.reach(token, text, from, at..at + vocab.bytes(token).len()) });
            }
        }
        None
    }

    /// The range of a token, with the white space that it swallows from byte `from` on.
    fn reach(&self, token: u32, text: &str, from: usize, mut range: Range<usize>) -> Range<usize> {
        let space = |b: &u8| b.is_ascii_whitespace() || *b == 0x0b;
        let bytes = text.as_bytes();
        if self.left.contains(&token) {
            range.start -= bytes[from..range.start].iter().rev().take_while(|b| space(b)).count();
        }
        if self.right.contains(&token) {
            range.end += bytes[range.end..].iter().take_while(|b| space(b)).count();
        }
        range
    }
}

/// Tokens that swallow the white space before and after them. Files do not say which, so llama.cpp knows it by the
/// names of models; this follows it.
fn swallowing(keys: &Keys<'_>, vocab: &Vocab, special: &[u32]) -> Result<(Vec<u32>, Vec<u32>)> {
    let (name, pre) = (keys.model_name()?, keys.str("pre")?.unwrap_or_default());
    let named = |names: &[&str]| -> Vec<u32> { names.iter().filter_map(|n| vocab.find(n.as_bytes())).collect() };
    if ["jina-v2-de", "jina-v2-es", "jina-v2-code"].contains(&pre) {
        return Ok((named(&["<mask>"]), Vec::new()));
    }
    if name.contains("phi-3") || name.contains("phi3") {
        let not = named(&["<unk>", "<s>", "<|endoftext|>"]);
        let end = named(&["</s>"]);
        return Ok((Vec::new(), special.iter().chain(&end).copied().filter(|t| !not.contains(t)).collect()));
    }
    if name.contains("modern-bert") || name.contains("modernbert") {
        return Ok((named(&["[MASK]"]), Vec::new()));
    }
    Ok((Vec::new(), Vec::new()))
}
