//! A base as it would be in one file, however it is split.
//!
//! A fingerprint must not depend on how a base was cut for its download. So a file that has a `split.` key is
//! taken as the file that llama.cpp's splitter was given: the metadata without those keys, all tensors in the
//! order of the shards, each aligned.

use super::shards::SPLIT;
use super::{Gguf, MAGIC, TensorType};
use std::ops::Range;

/// The bytes of a base in one file, most of them borrowed.
#[derive(Debug)]
pub struct Whole<'a> {
    /// The new header, if it needs one.
    head: Vec<u8>,
    /// What follows: the bytes, and how many zeros behind them.
    parts: Vec<(&'a [u8], usize)>,
}

/// More zeros than any padding has.
static ZEROS: [u8; 4096] = [0; 4096];

impl<'a> Whole<'a> {
    /// The file itself, unless it has a `split.` key.
    pub fn of(gguf: &Gguf<'a>) -> Self {
        if SPLIT.iter().all(|key| gguf.get(key).is_none()) {
            return Self { head: Vec::new(), parts: gguf.files.iter().map(|f| (*f, 0)).collect() };
        }
        let kept = gguf.metadata().enumerate().filter(|(_, (key, _))| !SPLIT.contains(key));
        let entries: Vec<&[u8]> = kept.map(|(i, _)| gguf.raw_entry(i)).collect();
        Self::build(gguf, &entries, 0..gguf.tensors().len())
    }

    /// A file of some of the tensors with these metadata.
    pub(crate) fn build(gguf: &Gguf<'a>, entries: &[&[u8]], tensors: Range<usize>) -> Self {
        let tensors = &gguf.tensors()[tensors];
        let align = u64::from(gguf.alignment());
        let mut head = Vec::new();
        head.extend(MAGIC);
        head.extend(gguf.version().to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend((entries.len() as u64).to_le_bytes());
        entries.iter().for_each(|e| head.extend(*e));
        let mut offset = 0;
        let mut parts = Vec::with_capacity(tensors.len());
        for t in tensors {
            head.extend((t.name.len() as u64).to_le_bytes());
            head.extend(t.name.as_bytes());
            head.extend((t.n_dims as u32).to_le_bytes());
            t.ne[..t.n_dims].iter().for_each(|n| head.extend(n.to_le_bytes()));
            let id = match t.ty {
                TensorType::Known(q) => q.ggml_id(),
                TensorType::Unknown(id) => id,
            };
            head.extend(id.to_le_bytes());
            head.extend(u64::to_le_bytes(offset));
            let padded = t.len.next_multiple_of(align);
            offset += padded;
            parts.push((gguf.data(t), (padded - t.len) as usize));
        }
        head.resize(head.len().next_multiple_of(align as usize), 0);
        Self { head, parts }
    }

    /// Its bytes, in pieces.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let parts = self.parts.iter().flat_map(|(data, zeros)| [*data, &ZEROS[..*zeros]]);
        std::iter::once(self.head.as_slice()).chain(parts)
    }

    /// Number of its bytes.
    pub fn len(&self) -> u64 {
        self.pieces().map(|p| p.len() as u64).sum()
    }

    /// True if it has none, as no base does.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes of a range, in pieces.
    pub fn range(&self, range: Range<u64>) -> impl Iterator<Item = &[u8]> {
        let mut start = 0u64;
        self.pieces().filter_map(move |p| {
            let own = start..start + p.len() as u64;
            start = own.end;
            let (from, to) = (range.start.max(own.start), range.end.min(own.end));
            (from < to).then(|| &p[(from - own.start) as usize..(to - own.start) as usize])
        })
    }
}
