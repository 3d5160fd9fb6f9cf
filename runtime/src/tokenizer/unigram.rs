//! SentencePiece's unigram model (Kudo 2018): of all ways to cut a text into pieces, the one whose scores sum up
//! highest.

use super::Encoded;
use super::aligned::Aligned;
use super::charsmap::Charsmap;
use super::keys::Keys;
use super::spm::{SPACE, scores};
use super::vocab::{TokenKind, Vocab};
use crate::error::{Code, Error, Result};
use conpet_formats::mmap::Mapped;

/// Longest piece, in bytes; it bounds the work for each character of a text.
const PIECE_CAP: usize = 256;
/// How much worse a character that is no piece is than the worst piece.
const UNKNOWN_PENALTY: f64 = 10.0;

/// Scores, and how text is made ready.
#[derive(Debug)]
pub(super) struct Unigram {
    scores: Vec<f32>,
    unknown: u32,
    unknown_score: f64,
    /// Pieces that may stand in a text, sorted by their bytes.
    pieces: Vec<u32>,
    charsmap: Option<Charsmap>,
    add_space: bool,
    merge_spaces: bool,
}

/// The best way to cut a text up to some byte: the last piece, where it begins, and the sum of scores.
#[derive(Debug, Clone, Copy)]
struct Best {
    token: u32,
    from: u32,
    score: f64,
}

impl Unigram {
    pub(super) fn read(keys: &Keys<'_>, vocab: &Vocab, map: &Mapped) -> Result<Self> {
        let scores = scores(keys, vocab)?;
        let unknown = match keys.id("unknown", vocab.len())? {
            Some(id) => id,
            None => (0..vocab.len() as u32).find(|t| vocab.kind(*t) == TokenKind::Unknown).ok_or_else(|| {
                Error::new(Code::Missing, "the file does not say which token stands for unknown characters")
                    .in_section("key tokenizer.ggml.unknown_token_id")
            })?,
        };
        let mut pieces = Vec::new();
        for id in 0..vocab.len() as u32 {
            match vocab.kind(id) {
                TokenKind::Normal | TokenKind::User | TokenKind::Unused if !vocab.bytes(id).is_empty() => {
                    pieces.push(id)
                }
                TokenKind::Byte => {
                    return Err(Error::new(Code::Unsupported, format!("token {id} is a byte of a unigram vocabulary"))
                        .hint("take a base whose vocabulary has no byte tokens"));
                }
                _ => {}
            }
        }
        if let Some(id) = pieces.iter().find(|id| vocab.bytes(**id).len() > PIECE_CAP) {
            let what = format!("piece {id} has {} bytes, cap {PIECE_CAP}", vocab.bytes(*id).len());
            return Err(Error::new(Code::Cap, what));
        }
        pieces.sort_by(|a, b| vocab.bytes(*a).cmp(vocab.bytes(*b)).then(a.cmp(b)));
        let normal = pieces.iter().filter(|id| vocab.kind(**id) == TokenKind::Normal);
        let worst = normal.map(|id| f64::from(scores[*id as usize])).fold(f64::INFINITY, f64::min);
        let charsmap = match keys.array("precompiled_charsmap")? {
            Some(a) if !a.is_empty() => Some(Charsmap::read(&a, map)?),
            _ => None,
        };
        Ok(Self {
            unknown,
            unknown_score: if worst.is_finite() { worst } else { 0.0 } - UNKNOWN_PENALTY,
            pieces,
            scores,
            charsmap,
            add_space: keys.bool("add_space_prefix")?.unwrap_or(false),
            merge_spaces: keys.bool("remove_extra_whitespaces")?.unwrap_or(false),
        })
    }

    /// Tokenizes a piece of text that begins at byte `base` of the whole.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, base: usize, out: &mut Encoded) {
        let ready = self.ready(text, base);
        let bytes = ready.text().as_bytes();
        let none = Best { token: self.unknown, from: 0, score: f64::NEG_INFINITY };
        let mut best = vec![none; bytes.len() + 1];
        best[0].score = 0.0;
        for (at, c) in ready.text().char_indices() {
            let (here, mut whole) = (best[at].score, false);
            let mut offer = |end: usize, token: u32, score: f64| {
                if here + score > best[end].score {
                    best[end] = Best { token, from: at as u32, score: here + score };
                }
            };
            self.pieces_at(vocab, &bytes[at..], |token, len| {
                whole |= len == c.len_utf8();
                // What the file defines costs nothing, so it is preferred.
                let defined = vocab.kind(token) == TokenKind::User;
                offer(at + len, token, if defined { 0.0 } else { f64::from(self.scores[token as usize]) });
            });
            if !whole {
                offer(at + c.len_utf8(), self.unknown, self.unknown_score);
            }
        }
        let (mut found, mut end) = (Vec::<(u32, std::ops::Range<usize>)>::new(), bytes.len());
        while end > 0 {
            let Best { token, from, .. } = best[end];
            let from = from as usize;
            match found.last_mut() {
                // Unknown characters in a row are one token.
                Some((last, range)) if token == self.unknown && *last == self.unknown => *range = from..range.end,
                _ => found.push((token, from..end)),
            }
            end = from;
        }
        found.iter().rev().for_each(|(token, range)| out.push(*token, ready.source(range)));
    }

    /// Calls `each` with the pieces that `text` begins with, and their lengths.
    fn pieces_at(&self, vocab: &Vocab, text: &[u8], mut each: impl FnMut(u32, usize)) {
        let mut left = &self.pieces[..];
        for (i, b) in text.iter().enumerate() {
            // A piece that has ended sorts before those that go on.
            left = &left[left.partition_point(|t| vocab.bytes(*t).get(i) < Some(b))..];
            left = &left[..left.partition_point(|t| vocab.bytes(*t)[i] == *b)];
            match left.first() {
                None => return,
                Some(t) if vocab.bytes(*t).len() == i + 1 => each(*t, i + 1),
                Some(_) => {}
            }
        }
    }

    /// The text with its characters rewritten and its spaces spelled.
    fn ready(&self, text: &str, base: usize) -> Aligned {
        let mut out = Aligned::default();
        let mut at = 0;
        // Spaces not yet written, and whether something was written.
        let (mut spaces, mut begun) = (None::<std::ops::Range<usize>>, false);
        if self.add_space && !self.merge_spaces && !text.is_empty() {
            out.push(SPACE, base..base);
        }
        while at < text.len() {
            let first = text[at..].chars().next().map_or(1, char::len_utf8);
            let rewritten = self.charsmap.as_ref().and_then(|m| m.longest(&text[at..]));
            let (len, to) = rewritten.unwrap_or((first, &text[at..at + first]));
            let source = base + at..base + at + len;
            for c in to.chars() {
                if c != ' ' {
                    if self.merge_spaces && (begun || self.add_space) {
                        match spaces.take() {
                            Some(s) => out.push(SPACE, s),
                            None if !begun => out.push(SPACE, source.start..source.start),
                            None => {}
                        }
                    }
                    (begun, spaces) = (true, None);
                    out.push(c.encode_utf8(&mut [0; 4]), source.clone());
                } else if self.merge_spaces {
                    spaces = Some(spaces.map_or(source.start, |s| s.start)..source.end);
                } else {
                    out.push(SPACE, source.clone());
                }
            }
            at += len;
        }
        out
    }
}
