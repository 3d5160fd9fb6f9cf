//! Byte-level byte-pair encoding (Radford et al. 2019): bytes are spelled as printable
//! characters, words are split by a pattern, and pairs merge in the order they were learned.

use super::Encoded;
use super::keys::Keys;
use super::pretokenize::Pattern;
use super::vocab::{TokenKind, Vocab};
use crate::error::{Code, Error, Result};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::{BuildHasher, RandomState};

/// The merge rules.
#[derive(Debug)]
pub(super) struct Bpe {
    /// How text is split into words.
    pub(super) pattern: Pattern,
    /// Hash table with open addressing, keyed by (left, right); it holds rank + 1 (0 is empty) and the merged
    /// token.
    merges: Vec<Merge>,
    /// Keyed at random, for the same reason as the vocabulary's.
    hash: RandomState,
    /// The token of each single byte.
    byte: [Option<u32>; 256],
}

#[derive(Debug, Clone, Copy, Default)]
struct Merge {
    left: u32,
    right: u32,
    rank: u32,
    token: u32,
}

/// The printable character that spells a byte, as GPT-2's table assigns them: most bytes spell themselves, and the
/// others, in their order, the characters from U+0100 on.
fn spell(b: u8) -> char {
    let before = match b {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => return b as char,
        0..=b' ' => b,
        0x7f..=0xa0 => b - 0x7f + 33,
        0xad => 67,
    };
    char::from_u32(256 + u32::from(before)).unwrap_or('?')
}

/// The bytes of a token's spelling; characters that spell no byte stand for themselves.
pub(super) fn decode(spelling: &[u8]) -> Vec<u8> {
    thread_local!(static BACK: std::collections::HashMap<char, u8> = (0..=255u8).map(|b| (spell(b), b)).collect());
    let mut out = Vec::with_capacity(spelling.len());
    BACK.with(|back| {
        for c in String::from_utf8_lossy(spelling).chars() {
            match back.get(&c) {
                Some(b) => out.push(*b),
                None => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
    });
    out
}

impl Bpe {
    pub(super) fn read(keys: &Keys<'_>, vocab: &Vocab) -> Result<Self> {
        let pattern = Pattern::from_name(keys.str("pre")?)?;
        keys.off("add_space_prefix", "take a base whose words are cut as they stand")?;
        let merges = keys.required("merges")?;
        let mut bpe = Self {
            pattern,
            merges: vec![Merge::default(); (merges.len() * 2 + 2).next_power_of_two()],
            hash: RandomState::new(),
            byte: std::array::from_fn(|b| vocab.find(spell(b as u8).encode_utf8(&mut [0; 4]).as_bytes())),
        };
        let mut joined = Vec::new();
        for (i, m) in merges.strings()?.enumerate() {
            let bad = |what: &str| {
                let shown: String = String::from_utf8_lossy(m).chars().take(40).collect();
                Error::new(Code::Value, format!("merge {i} {shown:?} {what}"))
            };
            // The first character may itself be a space, so look for one after it.
            let at = m.iter().skip(1).position(|b| *b == b' ').ok_or_else(|| bad("has no two parts"))? + 1;
            let (left, right) = (&m[..at], &m[at + 1..]);
            joined.clear();
            joined.extend(left.iter().chain(right));
            let find = |t: &[u8]| vocab.find(t).ok_or_else(|| bad("names a token that does not exist"));
            let (left, right, token) = (find(left)?, find(right)?, find(&joined)?);
            // Merging must not produce a control token.
            if vocab.kind(token) == TokenKind::Control {
                continue;
            }
            let mut slot = bpe.slot(left, right);
            let other = |m: &Merge| m.rank != 0 && (m.left, m.right) != (left, right);
            while other(&bpe.merges[slot]) {
                slot = (slot + 1) & (bpe.merges.len() - 1);
            }
            // Of equal pairs the first counts.
            if bpe.merges[slot].rank == 0 {
                bpe.merges[slot] = Merge { left, right, rank: i as u32 + 1, token };
            }
        }
        Ok(bpe)
    }

    /// Number of rules.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.merges.iter().filter(|m| m.rank != 0).count()
    }

    fn slot(&self, left: u32, right: u32) -> usize {
        self.hash.hash_one((left, right)) as usize & (self.merges.len() - 1)
    }

    fn merge(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        let mut slot = self.slot(left, right);
        loop {
            let m = &self.merges[slot];
            if m.rank == 0 {
                return None;
            }
            if m.left == left && m.right == right {
                return Some((m.rank, m.token));
            }
            slot = (slot + 1) & (self.merges.len() - 1);
        }
    }

    /// Tokenizes a piece of text that begins at byte `base` of the whole.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, base: usize, out: &mut Encoded) {
        let (text, from) = self.pattern.normalised(text);
        let begin = out.tokens.len();
        let mut spelled = String::new();
        self.pattern.split(&text, |range| {
            let word = &text[range.clone()];
            if self.pattern.whole_words {
                spelled.clear();
                spelled.extend(word.bytes().map(spell));
                let ordinary = |t: &u32| vocab.kind(*t) == TokenKind::Normal;
                if let Some(token) = vocab.find(spelled.as_bytes()).filter(ordinary) {
                    return out.push(token, range);
                }
            }
            self.word(word, range.start, out);
        });
        for range in &mut out.offsets[begin..] {
            let source = from.as_ref().map_or(range.clone(), |a| a.source(range));
            *range = base + source.start..base + source.end;
        }
    }

    /// Merges one word: always the pair of lowest rank, of equals the leftmost.
    fn word(&self, word: &str, base: usize, out: &mut Encoded) {
        // A linked list of parts: (token, start, end, next); a part that was merged away has no token.
        let mut parts: Vec<Part> = word
            .bytes()
            .enumerate()
            .filter_map(|(i, b)| {
                self.byte[b as usize].map(|token| Part { token, start: i, end: i + 1, prev: NONE, next: NONE })
            })
            .collect();
        let n = parts.len();
        for i in 0..n {
            parts[i].prev = if i == 0 { NONE } else { i - 1 };
            parts[i].next = if i + 1 == n { NONE } else { i + 1 };
        }
        let mut queue = BinaryHeap::new();
        let offer = |parts: &[Part], left: usize, queue: &mut BinaryHeap<_>| {
            let right = parts[left].next;
            if right != NONE
                && let Some((rank, token)) = self.merge(parts[left].token, parts[right].token)
            {
                queue.push(Reverse((rank, left, right, parts[left].end, parts[right].end, token)));
            }
        };
        (0..n).for_each(|i| offer(&parts, i, &mut queue));
        while let Some(Reverse((_, left, right, left_end, right_end, token))) = queue.pop() {
            // The entry is stale if either part has since grown or been merged away.
            if parts[left].next != right || parts[left].end != left_end || parts[right].end != right_end {
                continue;
            }
            if parts[left].start == DEAD {
                continue;
            }
            parts[left].token = token;
            parts[left].end = right_end;
            let after = parts[right].next;
            parts[left].next = after;
            parts[right].start = DEAD;
            if after != NONE {
                parts[after].prev = left;
            }
            offer(&parts, left, &mut queue);
            if parts[left].prev != NONE {
                offer(&parts, parts[left].prev, &mut queue);
            }
        }
        let mut at = if n == 0 { NONE } else { 0 };
        while at != NONE {
            let p = parts[at];
            out.push(p.token, base + p.start..base + p.end);
            at = p.next;
        }
    }
}

const NONE: usize = usize::MAX;
const DEAD: usize = usize::MAX;

#[derive(Debug, Clone, Copy)]
struct Part {
    token: u32,
    start: usize,
    end: usize,
    prev: usize,
    next: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_has_one_printable_spelling() {
        let mut seen = std::collections::HashSet::new();
        for b in 0..=255u8 {
            let c = spell(b);
            assert!(seen.insert(c) && !c.is_control() && !c.is_whitespace(), "{b} -> {c:?}");
            assert_eq!(decode(c.to_string().as_bytes()), [b]);
        }
        assert_eq!(spell(b' '), 'Ġ');
        assert_eq!(spell(b'\n'), 'Ċ');
        assert_eq!(decode("Ġhé".as_bytes()), [b' ', b'h', 0xe9]);
    }
}
