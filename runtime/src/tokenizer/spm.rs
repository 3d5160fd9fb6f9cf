//! SentencePiece BPE as llama.cpp runs it: characters merge in order of the merged token's score;
//! what is not in the vocabulary falls back to byte tokens `<0xNN>`.

use super::Encoded;
use super::keys::Keys;
use super::vocab::{TokenKind, Vocab};
use crate::error::{Code, Error, Result};
use std::borrow::Cow;
use std::collections::BinaryHeap;

/// How a space is spelled.
pub(super) const SPACE: &str = "\u{2581}";
const NONE: usize = usize::MAX;

/// Scores and byte tokens.
#[derive(Debug)]
pub(super) struct Spm {
    scores: Vec<f32>,
    byte: [Option<u32>; 256],
    unknown: u32,
    add_space: bool,
}

impl Spm {
    pub(super) fn read(keys: &Keys<'_>, vocab: &Vocab) -> Result<Self> {
        let scores = scores(keys, vocab)?;
        for id in (0..vocab.len() as u32).filter(|t| vocab.kind(*t) == TokenKind::Byte) {
            if byte_of(vocab.bytes(id)).is_none() {
                let shown = String::from_utf8_lossy(vocab.bytes(id)).chars().take(20).collect::<String>();
                return Err(Error::new(Code::Value, format!("byte token {id} is spelled {shown:?}, not <0xNN>")));
            }
        }
        let unknown = keys.id("unknown", vocab.len())?.unwrap_or(0);
        keys.off("remove_extra_whitespaces", "take a base whose spaces are kept")?;
        keys.empty("precompiled_charsmap", "take a base whose characters are not rewritten")?;
        let add_space = keys.bool("add_space_prefix")?.unwrap_or(true);
        let byte = std::array::from_fn(|b| vocab.find(format!("<0x{b:02X}>").as_bytes()));
        Ok(Self { scores, byte, unknown, add_space })
    }

    pub(super) fn encode(&self, vocab: &Vocab, text: &str, base: usize, first: bool, out: &mut Encoded) {
        // Characters with their place in the text; the added space has no byte in it.
        let mut spelled = String::with_capacity(text.len() + 8);
        let mut places: Vec<(usize, usize, usize)> = Vec::with_capacity(text.len() + 1);
        let lead = if first && self.add_space { Some((' ', 0, 0)) } else { None };
        for (c, start, end) in lead.into_iter().chain(text.char_indices().map(|(i, c)| (c, i, i + c.len_utf8()))) {
            places.push((spelled.len(), start, end));
            if c == ' ' { spelled.push_str(SPACE) } else { spelled.push(c) }
        }
        let n = places.len();
        // Parts are runs of characters [i, end[i]); `next` and `prev` link those alive.
        let stop = |i: usize| if i < n { places[i].0 } else { spelled.len() };
        let mut end: Vec<usize> = (1..=n).collect();
        let mut prev: Vec<usize> = (0..n).map(|i| if i == 0 { NONE } else { i - 1 }).collect();
        let mut next: Vec<usize> = (1..=n).map(|i| if i == n { NONE } else { i }).collect();
        let mut queue: BinaryHeap<Bigram> = BinaryHeap::new();
        // Merging must not produce a control token.
        let known = |bytes: &[u8]| vocab.find(bytes).filter(|t| vocab.kind(*t) != TokenKind::Control);
        let offer = |left: usize, end: &[usize], next: &[usize], queue: &mut BinaryHeap<Bigram>| {
            let right = next[left];
            if right != NONE
                && let Some(t) = known(&spelled.as_bytes()[stop(left)..stop(end[right])])
            {
                queue.push(Bigram {
                    score: self.scores[t as usize],
                    left,
                    right,
                    end: end[right],
                    left_end: end[left],
                });
            }
        };
        (0..n).for_each(|i| offer(i, &end, &next, &mut queue));
        while let Some(b) = queue.pop() {
            if next[b.left] != b.right || end[b.left] != b.left_end || end[b.right] != b.end {
                continue;
            }
            end[b.left] = b.end;
            next[b.left] = next[b.right];
            // A merged part must never match again.
            end[b.right] = NONE;
            if next[b.left] != NONE {
                prev[next[b.left]] = b.left;
            }
            offer(b.left, &end, &next, &mut queue);
            if prev[b.left] != NONE {
                offer(prev[b.left], &end, &next, &mut queue);
            }
        }
        let mut at = if n == 0 { NONE } else { 0 };
        while at != NONE {
            let bytes = &spelled.as_bytes()[stop(at)..stop(end[at])];
            let range = base + places[at].1..base + places[end[at] - 1].2;
            match known(bytes) {
                Some(t) => out.push(t, range),
                None => {
                    bytes.iter().for_each(|b| out.push(self.byte[*b as usize].unwrap_or(self.unknown), range.clone()))
                }
            }
            at = next[at];
        }
    }
}

/// The scores of all tokens.
pub(super) fn scores(keys: &Keys<'_>, vocab: &Vocab) -> Result<Vec<f32>> {
    let scores: Vec<f32> = keys.required("scores")?.f32s()?.collect();
    if scores.len() != vocab.len() {
        return Err(Error::new(Code::Shape, format!("{} scores for {} tokens", scores.len(), vocab.len())));
    }
    Ok(scores)
}

/// The text of a piece.
pub(super) fn decode(vocab: &Vocab, token: u32) -> Cow<'_, [u8]> {
    let bytes = vocab.bytes(token);
    if vocab.kind(token) == TokenKind::Byte {
        return byte_of(bytes).map_or(Cow::Borrowed(&[]), |b| Cow::Owned(vec![b]));
    }
    if !bytes.windows(3).any(|w| w == SPACE.as_bytes()) {
        return Cow::Borrowed(bytes);
    }
    Cow::Owned(String::from_utf8_lossy(bytes).replace(SPACE, " ").into_bytes())
}

fn byte_of(spelling: &[u8]) -> Option<u8> {
    let hex = spelling.strip_prefix(b"<0x")?.strip_suffix(b">")?;
    let digits = hex.len() == 2 && hex.iter().all(u8::is_ascii_hexdigit);
    digits.then(|| std::str::from_utf8(hex).ok().and_then(|h| u8::from_str_radix(h, 16).ok())).flatten()
}

#[derive(Debug, PartialEq)]
struct Bigram {
    score: f32,
    left: usize,
    right: usize,
    left_end: usize,
    end: usize,
}

impl Eq for Bigram {}

impl Ord for Bigram {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Bigram {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
