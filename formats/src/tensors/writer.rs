//! The canonical writer: equal content gives equal bytes.

use super::tensor::{Dtype, Tensor};
use super::{ALIGN, PAD};
use crate::{Code, Error, Result};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Collects tensors and writes them sorted by name.
#[derive(Debug, Clone, Default)]
pub struct TensorsWriter<'a> {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Bytes<'a>)>,
}

#[derive(Debug, Clone)]
enum Bytes<'a> {
    Owned(Vec<u8>),
    Borrowed(&'a [u8]),
}

impl Bytes<'_> {
    fn get(&self) -> &[u8] {
        match self {
            Self::Owned(v) => v,
            Self::Borrowed(s) => s,
        }
    }
}

impl<'a> TensorsWriter<'a> {
    /// An empty payload.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds values as F32.
    pub fn add_f32(&mut self, name: &str, shape: &[usize], v: &[f32]) -> Result<()> {
        self.add(name, Dtype::F32, shape, Bytes::Owned(v.iter().flat_map(|x| x.to_le_bytes()).collect()))
    }
    /// Adds values rounded to F16.
    pub fn add_f16(&mut self, name: &str, shape: &[usize], v: &[f32]) -> Result<()> {
        let bytes = v.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
        self.add(name, Dtype::F16, shape, Bytes::Owned(bytes))
    }
    /// Adds integers.
    pub fn add_i32(&mut self, name: &str, shape: &[usize], v: &[i32]) -> Result<()> {
        self.add(name, Dtype::I32, shape, Bytes::Owned(v.iter().flat_map(|x| x.to_le_bytes()).collect()))
    }
    /// Adds bytes.
    pub fn add_u8(&mut self, name: &str, shape: &[usize], v: &[u8]) -> Result<()> {
        self.add(name, Dtype::U8, shape, Bytes::Owned(v.to_vec()))
    }
    /// Adds a tensor that lies elsewhere.
    pub fn add_view(&mut self, name: &str, t: Tensor<'a>) -> Result<()> {
        self.add(name, t.dtype, &t.shape, Bytes::Borrowed(t.data))
    }

    fn add(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Bytes<'a>) -> Result<()> {
        let want = shape.iter().product::<usize>() * dtype.size();
        if bytes.get().len() != want {
            return Err(Error::new(Code::Shape, format!("{} bytes for shape {shape:?}", bytes.get().len()))
                .in_section(format!("tensor {name}")));
        }
        if self.tensors.insert(name.to_owned(), (dtype, shape.to_vec(), bytes)).is_some() {
            return Err(Error::new(Code::Duplicate, "this tensor occurs twice").in_section(format!("tensor {name}")));
        }
        Ok(())
    }

    /// The payload.
    ///
    /// # Errors
    /// If the header would exceed the cap.
    pub fn finish(&self) -> Result<Vec<u8>> {
        let mut out = self.header()?;
        for (_, _, bytes) in self.tensors.values() {
            out.extend(bytes.get());
            // The header is a multiple of 64 bytes long, so this aligns within the data section too.
            out.resize(out.len().next_multiple_of(ALIGN), 0);
        }
        // The last tensor carries no padding.
        let data: usize = self.layout().last().map_or(0, |(_, _, end, _)| *end);
        let header = out.len() - self.padded_data();
        out.truncate(header + data);
        Ok(out)
    }

    fn padded_data(&self) -> usize {
        self.tensors.values().map(|(_, _, b)| b.get().len().next_multiple_of(ALIGN)).sum()
    }

    /// Name, start, end, and length of the padding behind it, of each tensor within the data section.
    fn layout(&self) -> Vec<(&str, usize, usize, usize)> {
        let n = self.tensors.len();
        let mut at = 0;
        self.tensors
            .iter()
            .enumerate()
            .map(|(i, (name, (_, _, b)))| {
                let (start, end) = (at, at + b.get().len());
                at = end.next_multiple_of(ALIGN);
                (name.as_str(), start, end, if i + 1 == n { 0 } else { at - end })
            })
            .collect()
    }

    /// Length prefix and JSON, space-padded so that the data section begins on a 64-byte multiple.
    pub(super) fn header(&self) -> Result<Vec<u8>> {
        let mut json = String::from("{");
        let mut pads = 0;
        for ((name, start, end, pad), (dtype, shape, _)) in self.layout().into_iter().zip(self.tensors.values()) {
            let shape: Vec<String> = shape.iter().map(ToString::to_string).collect();
            if json.len() > 1 {
                json.push(',');
            }
            let _ = write!(
                json,
                "\"{name}\":{{\"dtype\":\"{}\",\"shape\":[{}],\"data_offsets\":[{start},{end}]}}",
                dtype.name(),
                shape.join(",")
            );
            if pad > 0 {
                let _ = write!(
                    json,
                    ",\"{PAD}{pads}\":{{\"dtype\":\"U8\",\"shape\":[{pad}],\"data_offsets\":[{end},{}]}}",
                    end + pad
                );
                pads += 1;
            }
        }
        json.push('}');
        while (json.len() + 8) % ALIGN != 0 {
            json.push(' ');
        }
        if json.len() > super::HEADER_CAP {
            return Err(Error::new(Code::Cap, format!("a header of {} bytes, cap {}", json.len(), super::HEADER_CAP)));
        }
        let mut out = (json.len() as u64).to_le_bytes().to_vec();
        out.extend(json.as_bytes());
        Ok(out)
    }
}
