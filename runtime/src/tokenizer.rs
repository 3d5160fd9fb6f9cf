//! Text to tokens and back, from the GGUF's own tables.
//!
//! Written here instead of using a library to save memory: the vocabulary stays in the mapped file and only
//! index tables are built (about 2 MiB and a few milliseconds for 49,000 tokens), where the usual library holds
//! several copies of every string. The tests compare the results with that library's.

mod aligned;
mod bpe;
mod charsmap;
mod classes;
mod ends;
mod keys;
mod pretokenize;
mod special;
mod spm;
mod unigram;
mod vocab;
mod wordpiece;
mod words;

use crate::error::{Code, Error, Result};
use conpet_formats::gguf::Gguf;
use conpet_formats::mmap::Mapped;
use ends::Ends;
use keys::Keys;
use special::Specials;
use std::borrow::Cow;
use std::ops::Range;
use vocab::{TokenKind, Vocab};

/// Longest text that is tokenized at once, in bytes.
pub const TEXT_CAP: usize = 16 << 20;

/// A tokenizer read from a GGUF.
#[derive(Debug)]
pub struct Tokenizer {
    vocab: Vocab,
    model: Model,
    specials: Specials,
    ends: Ends,
}

/// How words become tokens.
#[derive(Debug)]
enum Model {
    Bpe(bpe::Bpe),
    Spm(spm::Spm),
    Unigram(unigram::Unigram),
    WordPiece(wordpiece::WordPiece),
}

impl Model {
    /// Every text begins with BOS unless the file says otherwise.
    fn begins(&self) -> bool {
        match self {
            Self::Bpe(m) => m.pattern.begins,
            Self::Spm(_) => true,
            Self::Unigram(_) | Self::WordPiece(_) => false,
        }
    }

    /// A text stands between BOS and a separator unless the file says otherwise.
    fn wraps(&self) -> bool {
        match self {
            Self::Bpe(m) => m.pattern.wraps,
            Self::WordPiece(_) => true,
            Self::Spm(_) | Self::Unigram(_) => false,
        }
    }
}

impl Tokenizer {
    /// Reads and checks the tables; `map` holds the bytes `gguf` was parsed from.
    ///
    /// # Errors
    /// If a table is missing or inconsistent, the tokenizer's kind is not supported, or the file has a key of a
    /// tokenizer that is not known.
    pub fn from_gguf(gguf: &Gguf<'_>, map: Mapped) -> Result<Self> {
        Self::read(&Keys::new(gguf), map).map_err(|e| e.in_section("tokenizer"))
    }

    fn read(keys: &Keys<'_>, map: Mapped) -> Result<Self> {
        let kind = keys.str("model")?;
        let mut vocab = Vocab::read(keys, map.clone())?;
        ends::mark(&mut vocab);
        let model = match kind {
            Some("gpt2") => Model::Bpe(bpe::Bpe::read(keys, &vocab)?),
            Some("llama") => Model::Spm(spm::Spm::read(keys, &vocab)?),
            Some("t5") => Model::Unigram(unigram::Unigram::read(keys, &vocab, &map)?),
            Some("bert") => Model::WordPiece(wordpiece::WordPiece::read(keys, &vocab)?),
            Some(other) => {
                return Err(Error::new(Code::Unsupported, format!("tokenizer model {other:?} is not supported"))
                    .hint("this release reads byte-level BPE (gpt2), SentencePiece (llama, t5) and WordPiece (bert)"));
            }
            None => {
                return Err(Error::new(Code::Missing, "the file lacks the key tokenizer.ggml.model")
                    .hint("the file is not a complete model; convert or download it again"));
            }
        };
        let specials = Specials::read(keys, &vocab)?;
        let ends = Ends::read(keys, &vocab, &model)?;
        keys.all_read()?;
        Ok(Self { vocab, model, specials, ends })
    }

    /// Tokens of a text. With `special`, control tokens that the text spells are read as such; use it for
    /// templates, not for users' text.
    ///
    /// # Errors
    /// If the text is longer than [`TEXT_CAP`].
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let words: Option<&[Range<usize>]> = if special { Some(&[]) } else { None };
        Ok(self.encode_with_offsets(text, words)?.0)
    }

    /// Tokens and the byte range of `text` that each stands for.
    ///
    /// With `words`, the text came out of a template, and control tokens are read everywhere except in these
    /// byte ranges (ascending, disjoint), which are the speakers' own words; without, all of the text is such
    /// words. User-defined tokens (runs of newlines, say) are read everywhere, as in llama.cpp.
    pub fn encode_with_offsets(
        &self,
        text: &str,
        words: Option<&[Range<usize>]>,
    ) -> Result<(Vec<u32>, Vec<Range<usize>>)> {
        if text.len() > TEXT_CAP {
            return Err(
                Error::new(Code::Cap, format!("a text of {} bytes, cap {TEXT_CAP}", text.len())).hint("split the text")
            );
        }
        let mut out = Encoded::default();
        // As in llama.cpp, the text after a control token begins anew, with SentencePiece's leading space.
        let (mut at, mut first) = (0, true);
        while at < text.len() {
            let found = self.specials.next(&self.vocab, text, at, words);
            let end = found.as_ref().map_or(text.len(), |f| f.range.start);
            if at < end {
                let words = &text[at..end];
                match &self.model {
                    Model::Bpe(m) => m.encode(&self.vocab, words, at, &mut out),
                    Model::Spm(m) => m.encode(&self.vocab, words, at, first, &mut out),
                    Model::Unigram(m) => m.encode(&self.vocab, words, at, &mut out),
                    Model::WordPiece(m) => m.encode(&self.vocab, words, at, &mut out),
                }
                first = false;
            }
            at = end;
            if let Some(f) = found {
                (at, first) = (f.range.end, true);
                out.push(f.token, f.range);
            }
        }
        Ok((out.tokens, out.offsets))
    }

    /// The bytes a token stands for; empty for control tokens and unknown ids.
    pub fn token_bytes(&self, token: u32) -> Cow<'_, [u8]> {
        if token as usize >= self.vocab.len() {
            return Cow::Borrowed(&[]);
        }
        match (self.vocab.kind(token), &self.model) {
            (TokenKind::Control, _) => Cow::Borrowed(&[]),
            (TokenKind::User, _) => Cow::Borrowed(self.vocab.bytes(token)),
            (_, Model::Bpe(_)) => Cow::Owned(bpe::decode(self.vocab.bytes(token))),
            (_, Model::Spm(_) | Model::Unigram(_)) => spm::decode(&self.vocab, token),
            (_, Model::WordPiece(_)) => wordpiece::decode(self.vocab.bytes(token)),
        }
    }

    /// The bytes of several tokens.
    pub fn decode(&self, tokens: &[u32]) -> Vec<u8> {
        tokens.iter().flat_map(|t| self.token_bytes(*t).into_owned()).collect()
    }

    /// The text of several tokens; bytes that are not UTF-8 become U+FFFD.
    pub fn decode_lossy(&self, tokens: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode(tokens)).into_owned()
    }

    /// Number of tokens.
    pub fn n_vocab(&self) -> usize {
        self.vocab.len()
    }
    /// The token that begins every text, if the file asks for one.
    pub fn bos(&self) -> Option<u32> {
        self.ends.bos
    }
    /// The token that ends every text that is complete, if the file asks for one: encoders read between these two.
    pub fn closing(&self) -> Option<u32> {
        self.ends.closing
    }
    /// The token that ends a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.ends.eos
    }
    /// True for tokens that end an answer.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.all.contains(&token)
    }
}

/// The tokens found so far, with their byte ranges.
#[derive(Debug, Default)]
struct Encoded {
    tokens: Vec<u32>,
    offsets: Vec<Range<usize>>,
}

impl Encoded {
    fn push(&mut self, token: u32, range: Range<usize>) {
        self.tokens.push(token);
        self.offsets.push(range);
    }

    fn truncate(&mut self, n: usize) {
        self.tokens.truncate(n);
        self.offsets.truncate(n);
    }
}

#[cfg(test)]
mod tests;
