//! A base split into shards, as llama.cpp's splitter does it.

use crate::gguf::{Gguf, Whole, Writer};
use crate::{Code, Error, Result};

/// The names and bytes of `count` shards of a base. The first has all metadata; tensors are dealt out in order.
///
/// # Errors
/// If the base is not a strict GGUF, or has fewer tensors than that.
pub fn split(base: &[u8], name: &str, count: usize) -> Result<Vec<(String, Vec<u8>)>> {
    let gguf = Gguf::parse(base)?;
    let n = gguf.tensors().len();
    if count == 0 || count > n {
        return Err(Error::new(Code::Value, format!("{n} tensors cannot be dealt out to {count} shards")));
    }
    let shard = |i: usize| -> Result<(String, Vec<u8>)> {
        let mut keys = Writer::new();
        keys.u16("split.no", i as u16).u16("split.count", count as u16).i32("split.tensors.count", n as i32);
        let mut header = Vec::new();
        keys.finish(&mut header, |_| Ok([]))?;
        let keys = Gguf::parse(&header)?;
        let own = (0..gguf.metadata().count()).filter(|_| i == 0).map(|k| gguf.raw_entry(k));
        let entries: Vec<&[u8]> = own.chain((0..3).map(|k| keys.raw_entry(k))).collect();
        let file = Whole::build(&gguf, &entries, n * i / count..n * (i + 1) / count);
        Ok((format!("{name}-{:05}-of-{count:05}.gguf", i + 1), file.pieces().collect::<Vec<_>>().concat()))
    };
    (0..count).map(shard).collect()
}
