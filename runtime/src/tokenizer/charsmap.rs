//! The rewriting of characters that a SentencePiece model brings along (`tokenizer.ggml.precompiled_charsmap`):
//! a double-array trie of what is rewritten (Kanda 2018), and the replacements, each ended by a zero.

use crate::error::{Code, Error, Result};
use conpet_formats::gguf::{Array, ValueType};
use conpet_formats::mmap::Mapped;
use std::ops::Range;

/// A map of characters, where it lies in the file.
#[derive(Debug)]
pub(super) struct Charsmap {
    map: Mapped,
    /// Nodes of four bytes: bits 0 to 7 are the byte that leads here, bit 8 says whether a replacement follows,
    /// bits 10 to 30 lead on, shifted by 8 if bit 9 is set. Bit 31 marks a replacement's place in the other bits.
    nodes: Range<usize>,
    replacements: Range<usize>,
}

impl Charsmap {
    /// Reads the map from an array of bytes in `map`.
    pub(super) fn read(array: &Array<'_>, map: &Mapped) -> Result<Self> {
        let bad = |what: &str| Error::new(Code::Value, what).in_section("key tokenizer.ggml.precompiled_charsmap");
        if !matches!(array.element_type(), ValueType::U8 | ValueType::I8) {
            return Err(bad("the map of characters is not made of bytes"));
        }
        let bytes = array.raw();
        let at = bytes.as_ptr() as usize - map.as_ptr() as usize;
        let (len, rest) = bytes.split_first_chunk::<4>().ok_or_else(|| bad("the map of characters is cut short"))?;
        let len = u32::from_le_bytes(*len) as usize;
        if len >= rest.len() || !len.is_multiple_of(4) {
            return Err(bad("the map of characters says a length that it does not have"));
        }
        let replacements = &rest[len..];
        if replacements.last() != Some(&0) || std::str::from_utf8(replacements).is_err() {
            return Err(bad("the map of characters ends in something that is no text"));
        }
        let nodes = at + 4..at + 4 + len;
        Ok(Self { map: map.clone(), replacements: nodes.end..at + bytes.len(), nodes })
    }

    fn node(&self, i: u32) -> Option<u32> {
        let at = (i as usize).checked_mul(4)?;
        let bytes = self.map[self.nodes.clone()].get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// The longest beginning of `text` that is rewritten, in bytes, and what it becomes.
    pub(super) fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let next = |node: u32| (node >> 10) << ((node & 1 << 9) >> 6);
        let (mut at, mut found) = (next(self.node(0)?), None);
        for (i, b) in text.bytes().enumerate() {
            at ^= u32::from(b);
            let Some(node) = self.node(at).filter(|n| b != 0 && n & (1 << 31 | 0xff) == u32::from(b)) else { break };
            at ^= next(node);
            if node & 1 << 8 != 0 {
                found = self.node(at).map(|n| (i + 1, n & !(1 << 31)));
            }
        }
        let (len, place) = found.filter(|(len, _)| text.is_char_boundary(*len))?;
        let rest = std::str::from_utf8(&self.map[self.replacements.clone()]).ok()?.get(place as usize..)?;
        Some((len, rest.split('\0').next()?))
    }
}
