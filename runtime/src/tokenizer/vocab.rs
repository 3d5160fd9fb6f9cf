//! The vocabulary: tokens in the mapped file, found by a compact hash table.

use super::keys::Keys;
use crate::error::{Code, Error, Result};
use conpet_formats::mmap::Mapped;
use std::hash::{BuildHasher, RandomState};

/// What a token is for (`tokenizer.ggml.token_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    Unknown,
    Control,
    User,
    Unused,
    Byte,
}

/// Maps tokens to ids and back.
#[derive(Debug)]
pub(super) struct Vocab {
    map: Mapped,
    /// (offset, length) of each token's bytes in the map.
    tokens: Vec<(u32, u32)>,
    kinds: Vec<u8>,
    /// Hash table with open addressing, at most half full; it holds ids + 1, and 0 is empty.
    index: Vec<u32>,
    /// Keyed at random in each process, so that no file can choose tokens that all collide.
    hash: RandomState,
}

const TOKEN_CAP: usize = 64 << 10;

/// Values of `tokenizer.ggml.token_type`.
const CONTROL: u8 = 3;
const USER: u8 = 4;

impl Vocab {
    pub(super) fn read(keys: &Keys<'_>, map: Mapped) -> Result<Self> {
        let array = keys.required("tokens")?;
        let start = map.as_ptr() as usize;
        let mut tokens = Vec::with_capacity(array.len());
        for (i, t) in array.strings()?.enumerate() {
            if t.len() > TOKEN_CAP {
                return Err(Error::new(Code::Cap, format!("token {i} has {} bytes, cap {TOKEN_CAP}", t.len())));
            }
            let at = u32::try_from(t.as_ptr() as usize - start)
                .map_err(|_| Error::new(Code::Cap, "the vocabulary lies beyond 4 GiB"))?;
            tokens.push((at, t.len() as u32));
        }
        if tokens.is_empty() {
            return Err(Error::new(Code::Missing, "there are no tokens"));
        }
        let mut kinds = vec![1u8; tokens.len()];
        if let Some(types) = keys.array("token_type")? {
            if types.len() != tokens.len() {
                return Err(Error::new(
                    Code::Shape,
                    format!("{} token types for {} tokens", types.len(), tokens.len()),
                ));
            }
            for (k, t) in kinds.iter_mut().zip(types.i32s()?) {
                *k = u8::try_from(t).unwrap_or(1);
            }
        }
        // A token that the chat template spells counts as a control token, whatever the file calls it.
        let template = keys.template()?;
        for (kind, (at, len)) in kinds.iter_mut().zip(&tokens).filter(|(kind, _)| **kind == USER) {
            let spelling = std::str::from_utf8(&map[*at as usize..(at + len) as usize]).unwrap_or_default().trim();
            if !spelling.is_empty() && template.contains(spelling) {
                *kind = CONTROL;
            }
        }
        let index = vec![0; (tokens.len() * 2).next_power_of_two()];
        let mut v = Self { index, map, tokens, kinds, hash: RandomState::new() };
        for id in 0..v.len() as u32 {
            let mut at = v.slot(v.bytes(id));
            // Of equal tokens (real files have some) the first is found.
            while v.index[at] != 0 && v.bytes(v.index[at] - 1) != v.bytes(id) {
                at = (at + 1) & (v.index.len() - 1);
            }
            if v.index[at] == 0 {
                v.index[at] = id + 1;
            }
        }
        Ok(v)
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// A token as it is spelled in the file.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let (at, len) = self.tokens[id as usize];
        &self.map[at as usize..(at + len) as usize]
    }

    pub(super) fn kind(&self, id: u32) -> TokenKind {
        match self.kinds[id as usize] {
            2 => TokenKind::Unknown,
            CONTROL => TokenKind::Control,
            USER => TokenKind::User,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => TokenKind::Normal,
        }
    }

    /// Makes a control token of a token, whatever the file calls it.
    pub(super) fn make_control(&mut self, id: u32) {
        self.kinds[id as usize] = CONTROL;
    }

    /// The token with this spelling.
    pub(super) fn find(&self, bytes: &[u8]) -> Option<u32> {
        let mut at = self.slot(bytes);
        while self.index[at] != 0 {
            let id = self.index[at] - 1;
            if self.bytes(id) == bytes {
                return Some(id);
            }
            at = (at + 1) & (self.index.len() - 1);
        }
        None
    }

    /// The longest run of occupied slots: the worst-case cost of finding a token.
    #[cfg(test)]
    pub(super) fn longest_run(&self) -> usize {
        self.index.split(|id| *id == 0).map(<[u32]>::len).max().unwrap_or(0)
    }

    fn slot(&self, bytes: &[u8]) -> usize {
        self.hash.hash_one(bytes) as usize & (self.index.len() - 1)
    }
}
