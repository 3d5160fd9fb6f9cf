//! The strict reader of payloads.

use super::tensor::{Dtype, Tensor};
use super::writer::TensorsWriter;
use super::{ALIGN, HEADER_CAP, PAD};
use crate::{Code, Error, Result};
use safetensors::SafeTensors;

/// A validated payload.
///
/// What holds: the header is at most 1 MiB, begins with `{` and is the one canonical spelling of
/// its content; offsets are contiguous; names match `[A-Za-z0-9_][A-Za-z0-9_.]{0,127}`; every
/// tensor is 64-byte aligned; padding is zero; every float is finite and at most 65504.
#[derive(Debug)]
pub struct Tensors<'a> {
    entries: Vec<(String, Tensor<'a>)>,
}

impl<'a> Tensors<'a> {
    /// Parses and validates.
    ///
    /// # Errors
    /// Names the broken rule and the tensor.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        Self::parse_unscanned(bytes)?.finite(bytes)
    }

    /// [`Tensors::parse`] without looking at the values: for payloads whose digest was verified
    /// and which were scanned when they were written.
    pub fn parse_unscanned(bytes: &'a [u8]) -> Result<Self> {
        let header_len = match bytes.first_chunk::<8>().map(|b| u64::from_le_bytes(*b)) {
            None => {
                return Err(
                    Error::new(Code::Truncated, format!("{} bytes are no safetensors payload", bytes.len())).at(0)
                );
            }
            Some(n) if n > HEADER_CAP as u64 => {
                return Err(Error::new(Code::Cap, format!("a header of {n} bytes, cap {HEADER_CAP}")).at(0));
            }
            Some(n) => n as usize,
        };
        let header = bytes.get(8..8 + header_len).ok_or_else(|| {
            Error::new(Code::Truncated, format!("a header of {header_len} bytes in {} bytes", bytes.len())).at(8)
        })?;
        if header.first() != Some(&b'{') {
            return Err(Error::new(Code::Value, "the header does not begin with '{'").at(8));
        }
        if let Err(e) = std::str::from_utf8(header) {
            return Err(Error::new(Code::Text, "the header is not UTF-8").at(8 + e.valid_up_to() as u64));
        }
        let view = SafeTensors::deserialize(bytes)
            .map_err(|e| Error::new(Code::Layout, format!("not valid safetensors: {e}")).at(8))?;
        let mut entries = Vec::new();
        let data_start = 8 + header_len;
        for (name, t) in view.tensors() {
            let section = || format!("tensor {}", name.escape_debug());
            let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
            let rest = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
            if !first || !rest || name.len() > 128 {
                return Err(Error::new(Code::Text, "a tensor name is 1 to 128 of [A-Za-z0-9_.]")
                    .in_section(section())
                    .at(8));
            }
            let dtype = match t.dtype() {
                safetensors::Dtype::F32 => Dtype::F32,
                safetensors::Dtype::F16 => Dtype::F16,
                safetensors::Dtype::BF16 => Dtype::BF16,
                safetensors::Dtype::I32 => Dtype::I32,
                safetensors::Dtype::U8 => Dtype::U8,
                other => {
                    return Err(Error::new(Code::Type, format!("dtype {other:?} is not allowed"))
                        .in_section(section())
                        .at(8));
                }
            };
            let shape = t.shape().to_vec();
            if shape.is_empty() || shape.len() > 4 || shape.iter().any(|d| *d == 0 || *d >= 1 << 31) {
                return Err(Error::new(Code::Shape, format!("shape {shape:?} is not 1 to 4 sizes from 1"))
                    .in_section(section())
                    .at(8));
            }
            // `data()` borrows from a temporary view; find the same bytes in `bytes`.
            let start = t.data().as_ptr() as usize - bytes.as_ptr() as usize;
            let data = &bytes[start..start + t.data().len()];
            if name.starts_with(PAD) {
                if data.iter().any(|b| *b != 0) {
                    return Err(Error::new(Code::Reserved, "padding is not zero")
                        .in_section(section())
                        .at(start as u64));
                }
            } else if !(start - data_start).is_multiple_of(ALIGN) {
                return Err(Error::new(Code::Align, format!("not {ALIGN}-byte aligned"))
                    .in_section(section())
                    .at(start as u64));
            }
            entries.push((name, Tensor { dtype, shape, data }));
        }
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        let mut w = TensorsWriter::new();
        for (n, t) in entries.iter().filter(|(n, _)| !n.starts_with(PAD)) {
            w.add_view(n, t.clone())?;
        }
        if w.header()?.as_slice() != &bytes[..data_start] {
            return Err(Error::new(Code::NonCanonical, "the header is not in canonical form")
                .at(8)
                .hint("write it with this project's writer; duplicate keys, spaces and other orders are refused"));
        }
        entries.retain(|(n, _)| !n.starts_with(PAD));
        Ok(Self { entries })
    }

    fn finite(self, bytes: &[u8]) -> Result<Self> {
        for (name, t) in &self.entries {
            let bad = match t.dtype {
                Dtype::F32 => t.data.chunks_exact(4).position(|b| {
                    let v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                    !(v.abs() <= 65504.0)
                }),
                // All exponent bits set is infinity or NaN.
                Dtype::F16 => t.data.chunks_exact(2).position(|b| b[1] & 0x7c == 0x7c),
                Dtype::BF16 => t.data.chunks_exact(2).position(|b| {
                    let v = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
                    !(v.abs() <= 65504.0)
                }),
                Dtype::I32 | Dtype::U8 => None,
            };
            if let Some(i) = bad {
                let start = t.data.as_ptr() as usize - bytes.as_ptr() as usize;
                return Err(Error::new(Code::NotFinite, format!("value {i} is not finite or exceeds 65504"))
                    .in_section(format!("tensor {name}"))
                    .at((start + i * t.dtype.size()) as u64));
            }
        }
        Ok(self)
    }

    /// Names, sorted; padding is not among them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|(n, _)| n.as_str())
    }

    /// One tensor.
    pub fn get(&self, name: &str) -> Option<Tensor<'a>> {
        self.entries.binary_search_by(|(n, _)| n.as_str().cmp(name)).ok().map(|i| self.entries[i].1.clone())
    }
}
