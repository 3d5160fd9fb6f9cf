//! Text to tokens and back, from the GGUF's own tables.
//!
//! Written here instead of using a library to save memory: the vocabulary stays in the mapped file and only
//! index tables are built (about 2 MiB and a few milliseconds for 49,000 tokens), where the usual library holds
//! several copies of every string. The tests compare the results with that library's.

mod bpe;
mod pretokenize;
mod spm;
mod vocab;

use crate::error::{Code, Error, Result};
use conpet_formats::gguf::Gguf;
use conpet_formats::mmap::Mapped;
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
    /// Control and user-defined tokens, sorted by first byte and then by falling length.
    specials: Vec<u32>,
    /// For each first byte, the range of its tokens in `specials`.
    special_start: Box<[Range<usize>; 256]>,
    bos: Option<u32>,
    eos: Option<u32>,
    ends: Vec<u32>,
}

#[derive(Debug)]
enum Model {
    Bpe(bpe::Bpe),
    Spm(spm::Spm),
}

impl Tokenizer {
    /// Reads and checks the tables; `map` holds the bytes `gguf` was parsed from.
    ///
    /// # Errors
    /// If a table is missing or inconsistent, or the tokenizer's kind is not supported.
    pub fn from_gguf(gguf: &Gguf<'_>, map: Mapped) -> Result<Self> {
        Self::read(gguf, map).map_err(|e| e.in_section("tokenizer"))
    }

    fn read(gguf: &Gguf<'_>, map: Mapped) -> Result<Self> {
        let vocab = Vocab::read(gguf, map)?;
        let model = match gguf.required_str("tokenizer.ggml.model")? {
            "gpt2" => Model::Bpe(bpe::Bpe::read(gguf, &vocab)?),
            "llama" => Model::Spm(spm::Spm::read(gguf, &vocab)?),
            other => {
                return Err(Error::new(Code::Unsupported, format!("tokenizer model {other:?} is not supported"))
                    .hint("this release reads byte-level BPE (gpt2) and SentencePiece (llama)"));
            }
        };
        let id = |key: &str| -> Result<Option<u32>> {
            match gguf.u32(key)? {
                Some(id) if id as usize >= vocab.len() => {
                    Err(Error::new(Code::Value, format!("{key} is {id}, but there are {} tokens", vocab.len())))
                }
                other => Ok(other),
            }
        };
        let (bos, eos) = (id("tokenizer.ggml.bos_token_id")?, id("tokenizer.ggml.eos_token_id")?);
        let mut ends: Vec<u32> = eos.into_iter().chain(id("tokenizer.ggml.eot_token_id")?).collect();
        for name in ["<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "</s>"] {
            ends.extend(vocab.find(name.as_bytes()).filter(|t| vocab.kind(*t) == TokenKind::Control));
        }
        let mut specials: Vec<u32> = (0..vocab.len() as u32)
            .filter(|t| matches!(vocab.kind(*t), TokenKind::Control | TokenKind::User) && !vocab.bytes(*t).is_empty())
            .collect();
        specials.sort_by_key(|t| (vocab.bytes(*t)[0], std::cmp::Reverse(vocab.bytes(*t).len())));
        let first = |t: &u32| usize::from(vocab.bytes(*t)[0]);
        let special_start = Box::new(std::array::from_fn(|b| {
            specials.partition_point(|s| first(s) < b)..specials.partition_point(|s| first(s) <= b)
        }));
        let spm = matches!(model, Model::Spm(_));
        let add_bos = gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(spm);
        Ok(Self { vocab, model, specials, special_start, bos: bos.filter(|_| add_bos), eos, ends })
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
            let next = self.next_special(text, at, words);
            let end = next.map_or(text.len(), |(start, _)| start);
            if at < end {
                match &self.model {
                    Model::Bpe(m) => m.encode(&self.vocab, &text[at..end], at, &mut out),
                    Model::Spm(m) => m.encode(&self.vocab, &text[at..end], at, first, &mut out),
                }
                first = false;
            }
            at = end;
            if let Some((start, token)) = next {
                let len = self.vocab.bytes(token).len();
                out.push(token, start..start + len);
                (at, first) = (start + len, true);
            }
        }
        Ok((out.tokens, out.offsets))
    }

    /// The first special token at or after `from`, the longest if several start there. Control tokens do not
    /// count in the speakers' `words`, and no special token counts across their borders.
    fn next_special(&self, text: &str, from: usize, words: Option<&[Range<usize>]>) -> Option<(usize, u32)> {
        let bytes = text.as_bytes();
        let whole = 0..bytes.len();
        let mut words = words.unwrap_or(std::slice::from_ref(&whole)).iter().skip_while(|w| w.end <= from).peekable();
        for at in from..bytes.len() {
            while words.next_if(|w| w.end <= at).is_some() {}
            let here = &self.specials[self.special_start[usize::from(bytes[at])].clone()];
            if here.is_empty() {
                continue;
            }
            let said = words.peek().is_some_and(|w| w.contains(&at));
            let limit = words.peek().map_or(bytes.len(), |w| if said { w.end } else { w.start });
            let fits = |t: &&u32| {
                let spoken = !said || self.vocab.kind(**t) != TokenKind::Control;
                spoken && bytes[at..limit].starts_with(self.vocab.bytes(**t))
            };
            if let Some(t) = here.iter().find(fits) {
                return Some((at, *t));
            }
        }
        None
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
            (_, Model::Spm(m)) => m.decode(&self.vocab, token),
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
    /// The token that begins every prompt, if the file asks for one.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }
    /// The token that ends a sequence.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }
    /// True for tokens that end an answer.
    pub fn is_end(&self, token: u32) -> bool {
        self.ends.contains(&token)
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
}

#[cfg(test)]
mod tests;
