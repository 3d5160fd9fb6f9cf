//! WordPiece as BERT has it (Devlin et al. 2019): the text is cleaned and cut into words, and each word into the
//! longest pieces of the vocabulary from the left. A word that does not come out is one unknown token.
//!
//! In a GGUF a piece that begins a word is spelled with a U+2581 before it, and one that continues a word bare.

use super::Encoded;
use super::aligned::Aligned;
use super::keys::Keys;
use super::vocab::{TokenKind, Vocab};
use crate::error::{Code, Error, Result};
use std::borrow::Cow;
use std::ops::Range;
use unicode_general_category::{GeneralCategory as G, get_general_category};
use unicode_normalization::UnicodeNormalization;

/// Longer words, in characters, are unknown.
const LONGEST_WORD: usize = 100;
const BEGINS: &str = "\u{2581}";

/// How text is cleaned, and the token of unknown words.
#[derive(Debug)]
pub(super) struct WordPiece {
    unknown: u32,
    lower: bool,
    strip_accents: bool,
    /// Bytes of the longest piece.
    longest: usize,
}

impl WordPiece {
    pub(super) fn read(keys: &Keys<'_>, vocab: &Vocab) -> Result<Self> {
        let unknown = match keys.id("unknown", vocab.len())? {
            Some(id) => id,
            None => vocab.find(b"[UNK]").ok_or_else(|| {
                Error::new(Code::Missing, "the file does not say which token stands for unknown words")
                    .in_section("key tokenizer.ggml.unknown_token_id")
            })?,
        };
        let lower = keys.bool("normalizer.lowercase")?.unwrap_or(true);
        let strip_accents = keys.bool("normalizer.strip_accents")?.unwrap_or(lower);
        let longest = (0..vocab.len() as u32).map(|id| vocab.bytes(id).len()).max().unwrap_or(0);
        Ok(Self { unknown, lower, strip_accents, longest })
    }

    /// Tokenizes a piece of text that begins at byte `base` of the whole.
    pub(super) fn encode(&self, vocab: &Vocab, text: &str, base: usize, out: &mut Encoded) {
        let mut word = Aligned::default();
        for (i, c) in text.char_indices() {
            let source = base + i..base + i + c.len_utf8();
            // The cleaning drops these before it looks for white space.
            if c == '\u{fffd}' || (is_other(c) && !matches!(c, '\t' | '\n' | '\r')) {
                continue;
            }
            if c.is_whitespace() {
                self.word(vocab, &mut word, out);
                continue;
            }
            let ideograph = is_ideograph(c);
            if ideograph {
                self.word(vocab, &mut word, out);
            }
            self.clean(c, |c| {
                let alone = is_punctuation(c);
                if alone {
                    self.word(vocab, &mut word, out);
                }
                word.push(c.encode_utf8(&mut [0; 4]), source.clone());
                if alone {
                    self.word(vocab, &mut word, out);
                }
            });
            if ideograph {
                self.word(vocab, &mut word, out);
            }
        }
        self.word(vocab, &mut word, out);
    }

    /// A character as the vocabulary spells it: without accents and in lower case, if the file says so.
    fn clean(&self, c: char, mut each: impl FnMut(char)) {
        if c.is_ascii() {
            return each(if self.lower { c.to_ascii_lowercase() } else { c });
        }
        let mut lower = |c: char| if self.lower { c.to_lowercase().for_each(&mut each) } else { each(c) };
        if self.strip_accents {
            std::iter::once(c).nfd().filter(|c| get_general_category(*c) != G::NonspacingMark).for_each(lower);
        } else {
            lower(c);
        }
    }

    /// Cuts one word into pieces, and empties it.
    fn word(&self, vocab: &Vocab, word: &mut Aligned, out: &mut Encoded) {
        let text = word.text();
        if text.is_empty() {
            return;
        }
        let (whole, begin) = (0..text.len(), out.tokens.len());
        let mut at = 0;
        if text.chars().count() > LONGEST_WORD {
            out.push(self.unknown, word.source(&whole));
            at = text.len();
        }
        while at < text.len() {
            match self.piece(vocab, text, at) {
                Some((token, range)) => {
                    at = range.end;
                    out.push(token, word.source(&range));
                }
                None => {
                    out.truncate(begin);
                    out.push(self.unknown, word.source(&whole));
                    break;
                }
            }
        }
        word.clear();
    }

    /// The longest piece at byte `at` of a word.
    fn piece(&self, vocab: &Vocab, word: &str, at: usize) -> Option<(u32, Range<usize>)> {
        let mark = if at == 0 { BEGINS } else { "" };
        let mut spelled = [mark, &word[at..]].concat();
        spelled.truncate(spelled.floor_char_boundary(self.longest));
        while spelled.len() > mark.len() {
            let ordinary = |t: &u32| !matches!(vocab.kind(*t), TokenKind::Control | TokenKind::Unknown);
            if let Some(token) = vocab.find(spelled.as_bytes()).filter(ordinary) {
                return Some((token, at..at + spelled.len() - mark.len()));
            }
            spelled.pop();
        }
        None
    }
}

/// The text of a token: a piece that begins a word has a space before it.
pub(super) fn decode(spelling: &[u8]) -> Cow<'_, [u8]> {
    match spelling.strip_prefix(BEGINS.as_bytes()) {
        Some(rest) => Cow::Owned([b" ", rest].concat()),
        None => Cow::Borrowed(spelling),
    }
}

/// Control and format characters, and what is private. What Unicode has not assigned stays, as in the usual
/// implementations: it may have been since.
fn is_other(c: char) -> bool {
    use G::{Control, Format, PrivateUse, Surrogate};
    if c.is_ascii() {
        return c.is_ascii_control();
    }
    matches!(get_general_category(c), Control | Format | PrivateUse | Surrogate)
}

/// Punctuation of any script, and what ASCII has besides letters and digits.
fn is_punctuation(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_punctuation();
    }
    use G::{
        ClosePunctuation, ConnectorPunctuation, DashPunctuation, FinalPunctuation, InitialPunctuation, OpenPunctuation,
        OtherPunctuation,
    };
    matches!(
        get_general_category(c),
        ClosePunctuation
            | ConnectorPunctuation
            | DashPunctuation
            | FinalPunctuation
            | InitialPunctuation
            | OpenPunctuation
            | OtherPunctuation
    )
}

/// The blocks of Han characters that BERT's cleaning sets apart. One block begins later than in Unicode, in every
/// implementation: vocabularies were made so.
fn is_ideograph(c: char) -> bool {
    matches!(
        u32::from(c),
        0x3400..=0x4dbf
            | 0x4e00..=0x9fff
            | 0xf900..=0xfaff
            | 0x2_0000..=0x2_a6df
            | 0x2_a700..=0x2_b73f
            | 0x2_b740..=0x2_b81f
            | 0x2_b920..=0x2_ceaf
            | 0x2_f800..=0x2_fa1f
    )
}
