//! Writes GGUF v3, streaming: header first, then each tensor's data in order.

use super::value::{Value, ValueType};
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::quant::QuantType;
use crate::{Code, Error, Result};
use std::io::Write;

/// Collects metadata and tensor declarations; [`Writer::finish`] writes them and the data.
#[derive(Debug, Default)]
pub struct Writer {
    n_kv: u64,
    metadata: Vec<u8>,
    tensors: Vec<(String, QuantType, Vec<u64>)>,
}

impl Writer {
    /// An empty file.
    pub fn new() -> Self {
        Self::default()
    }

    fn key(&mut self, key: &str, ty: ValueType) {
        self.n_kv += 1;
        put_string(&mut self.metadata, key.as_bytes());
        self.metadata.extend(ty.id().to_le_bytes());
    }

    /// Adds a string value.
    pub fn str(&mut self, key: &str, v: &str) -> &mut Self {
        self.key(key, ValueType::String);
        put_string(&mut self.metadata, v.as_bytes());
        self
    }
    /// Adds a u16 value.
    pub fn u16(&mut self, key: &str, v: u16) -> &mut Self {
        self.key(key, ValueType::U16);
        self.metadata.extend(v.to_le_bytes());
        self
    }
    /// Adds an i32 value.
    pub fn i32(&mut self, key: &str, v: i32) -> &mut Self {
        self.key(key, ValueType::I32);
        self.metadata.extend(v.to_le_bytes());
        self
    }
    /// Adds a u32 value.
    pub fn u32(&mut self, key: &str, v: u32) -> &mut Self {
        self.key(key, ValueType::U32);
        self.metadata.extend(v.to_le_bytes());
        self
    }
    /// Adds an f32 value.
    pub fn f32(&mut self, key: &str, v: f32) -> &mut Self {
        self.key(key, ValueType::F32);
        self.metadata.extend(v.to_le_bytes());
        self
    }
    /// Adds a bool value.
    pub fn bool(&mut self, key: &str, v: bool) -> &mut Self {
        self.key(key, ValueType::Bool);
        self.metadata.push(v.into());
        self
    }
    /// Adds an array of strings.
    pub fn strings<S: AsRef<[u8]>>(&mut self, key: &str, v: &[S]) -> &mut Self {
        self.array(key, ValueType::String, v.len());
        v.iter().for_each(|s| put_string(&mut self.metadata, s.as_ref()));
        self
    }
    /// Adds an array of i32.
    pub fn i32s(&mut self, key: &str, v: &[i32]) -> &mut Self {
        self.array(key, ValueType::I32, v.len());
        v.iter().for_each(|x| self.metadata.extend(x.to_le_bytes()));
        self
    }
    /// Adds an array of f32.
    pub fn f32s(&mut self, key: &str, v: &[f32]) -> &mut Self {
        self.array(key, ValueType::F32, v.len());
        v.iter().for_each(|x| self.metadata.extend(x.to_le_bytes()));
        self
    }

    /// Adds an array of bools.
    pub fn bools(&mut self, key: &str, v: &[bool]) -> &mut Self {
        self.array(key, ValueType::Bool, v.len());
        self.metadata.extend(v.iter().map(|b| u8::from(*b)));
        self
    }
    /// Adds an array of bytes.
    pub fn u8s(&mut self, key: &str, v: &[u8]) -> &mut Self {
        self.array(key, ValueType::U8, v.len());
        self.metadata.extend(v);
        self
    }
    /// Adds a value as another file has it.
    pub fn value(&mut self, key: &str, v: Value<'_>) -> &mut Self {
        if let Value::Array(a) = v {
            self.array(key, a.element_type(), a.len());
            self.metadata.extend(a.raw());
            return self;
        }
        self.key(key, v.value_type());
        let out = &mut self.metadata;
        match v {
            Value::U8(x) => out.push(x),
            Value::I8(x) => out.extend(x.to_le_bytes()),
            Value::U16(x) => out.extend(x.to_le_bytes()),
            Value::I16(x) => out.extend(x.to_le_bytes()),
            Value::U32(x) => out.extend(x.to_le_bytes()),
            Value::I32(x) => out.extend(x.to_le_bytes()),
            Value::F32(x) => out.extend(x.to_le_bytes()),
            Value::Bool(x) => out.push(x.into()),
            Value::String(x) => put_string(out, x.as_bytes()),
            Value::U64(x) => out.extend(x.to_le_bytes()),
            Value::I64(x) => out.extend(x.to_le_bytes()),
            Value::F64(x) => out.extend(x.to_le_bytes()),
            Value::Array(_) => {}
        }
        self
    }

    fn array(&mut self, key: &str, ty: ValueType, len: usize) {
        self.key(key, ValueType::Array);
        self.metadata.extend(ty.id().to_le_bytes());
        self.metadata.extend((len as u64).to_le_bytes());
    }

    /// Declares a tensor with sizes `ne`, fastest dimension first.
    pub fn tensor(&mut self, name: &str, ty: QuantType, ne: &[u64]) -> &mut Self {
        self.tensors.push((name.to_owned(), ty, ne.to_vec()));
        self
    }

    /// Writes everything; `data(i)` gives the bytes of the i-th declared tensor, in order.
    ///
    /// # Errors
    /// If a tensor's bytes are not the size its declaration demands, or writing fails.
    pub fn finish<D: AsRef<[u8]>>(&self, out: &mut dyn Write, mut data: impl FnMut(usize) -> Result<D>) -> Result<()> {
        self.stream(out, |i, out| out.write_all(data(i)?.as_ref()).map_err(|e| Error::io("write", e)))
    }

    /// As [`Writer::finish`], for tensors that are made piece by piece: `fill(i, out)` writes the i-th to `out`.
    ///
    /// # Errors
    /// As [`Writer::finish`], and those of `fill`.
    pub fn stream(&self, out: &mut dyn Write, mut fill: impl FnMut(usize, &mut dyn Write) -> Result<()>) -> Result<()> {
        let io = |e| Error::io("write", e);
        let align = u64::from(DEFAULT_ALIGNMENT);
        let mut header = Vec::with_capacity(self.metadata.len() + 64 * self.tensors.len() + 24);
        header.extend(MAGIC);
        header.extend(3u32.to_le_bytes());
        header.extend((self.tensors.len() as u64).to_le_bytes());
        header.extend(self.n_kv.to_le_bytes());
        header.extend(&self.metadata);
        let mut sizes = Vec::with_capacity(self.tensors.len());
        let mut offset = 0u64;
        for (name, ty, ne) in &self.tensors {
            let rows: u64 = ne[1..].iter().product();
            let row = ty.row_bytes(ne[0] as usize).ok_or_else(|| {
                Error::new(Code::Shape, format!("rows of {} numbers are not whole {} blocks", ne[0], ty.name()))
                    .in_section(format!("tensor {name}"))
            })?;
            let size = row as u64 * rows;
            put_string(&mut header, name.as_bytes());
            header.extend((ne.len() as u32).to_le_bytes());
            ne.iter().for_each(|n| header.extend(n.to_le_bytes()));
            header.extend(ty.ggml_id().to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset = (offset + size).next_multiple_of(align);
            sizes.push(size);
        }
        header.resize(header.len().next_multiple_of(align as usize), 0);
        out.write_all(&header).map_err(io)?;
        for (i, size) in sizes.into_iter().enumerate() {
            let mut counted = Counted { out, bytes: 0 };
            fill(i, &mut counted)?;
            if counted.bytes != size {
                return Err(Error::new(Code::Shape, format!("{} bytes where {size} were declared", counted.bytes))
                    .in_section(format!("tensor {}", self.tensors[i].0)));
            }
            out.write_all(&vec![0; (size.next_multiple_of(align) - size) as usize]).map_err(io)?;
        }
        Ok(())
    }
}

/// Counts what is written.
struct Counted<'a> {
    out: &'a mut dyn Write,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.bytes += n as u64;
        Ok(n)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

fn put_string(out: &mut Vec<u8>, s: &[u8]) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s);
}
