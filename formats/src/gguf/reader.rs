//! The validated view of a GGUF file.

use super::value::{Array, Value, text};
use super::{DEFAULT_ALIGNMENT, MAGIC};
use crate::bytes::Cursor;
use crate::error::clip;
use crate::quant::{self, QuantType};
use crate::{Code, Error, Result};
use std::fmt;

/// A parsed and validated GGUF.
///
/// What holds for every value of this type: version 2 or 3, little-endian; keys and tensor names
/// unique and non-empty; alignment a power of two from 8 to 4096; tensor offsets aligned,
/// ascending, not overlapping; each tensor of a known type whole blocks long and inside the file;
/// nothing but [`TRAILING_CAP`] zero bytes behind the last. Of a split base ([`super::Shards`]) this holds
/// for each file, and names of tensors are unique over all of them.
///
/// # Example
/// ```
/// use conpet_formats::gguf::{Gguf, TensorType};
/// use conpet_formats::quant;
/// # use conpet_formats::tiny;
///
/// # fn main() -> conpet_formats::Result<()> {
/// // Any bytes will do; a base is usually mapped, with `Mapped::open`.
/// let file = tiny::base(&tiny::TinyConfig::default())?;
/// let gguf = Gguf::parse(&file)?;
/// assert_eq!(gguf.required_str("general.architecture")?, "llama");
///
/// let table = gguf.tensor("token_embd.weight").expect("a base has an embedding table");
/// let TensorType::Known(ty) = table.ty else { panic!("this release cannot run {table:?}") };
/// let mut row = vec![0.0; table.cols() as usize];
/// let row_bytes = ty.row_bytes(row.len()).expect("rows are whole blocks");
/// quant::dequantize(ty, &gguf.data(table)[..row_bytes], &mut row);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Gguf<'a> {
    /// The file; of a split base, all of them in order.
    pub(super) files: Vec<&'a [u8]>,
    version: u32,
    alignment: u32,
    data_offset: usize,
    pub(super) metadata: Vec<(&'a str, Value<'a>)>,
    /// Where the metadata end, in the first file.
    metadata_end: usize,
    pub(super) tensors: Vec<TensorInfo<'a>>,
    /// Indices into `metadata` and into `tensors`, in the order of names.
    by_key: Vec<u32>,
    pub(super) by_name: Vec<u32>,
}

/// The type of a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorType {
    /// A type this project computes with.
    Known(QuantType),
    /// Any other type id: listed, refused on use.
    Unknown(u32),
}

impl fmt::Display for TensorType {
    /// The name that llama.cpp prints, or the id of a type unknown there too.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Known(ty) => ty.name(),
            Self::Unknown(id) => match quant::foreign_name(*id) {
                Some(name) => name,
                None => return write!(f, "type {id}"),
            },
        };
        f.write_str(name)
    }
}

/// One tensor of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorInfo<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its type.
    pub ty: TensorType,
    /// Sizes, fastest dimension first; unused ones are 1.
    pub ne: [u64; 4],
    /// How many sizes were given.
    pub n_dims: usize,
    /// Which file holds the data: 0, unless the base is split.
    pub file: usize,
    /// Absolute offset of the data in that file, in bytes.
    pub offset: u64,
    /// Bytes of data; for an unknown type, up to the next tensor or the end.
    pub len: u64,
}

impl TensorInfo<'_> {
    /// Values in a row (`ne[0]`).
    pub fn cols(&self) -> u64 {
        self.ne[0]
    }
    /// Rows (product of the other sizes).
    pub fn rows(&self) -> u64 {
        self.ne[1..].iter().product()
    }
}

const KV_CAP: u64 = 65_536;
const TENSOR_CAP: u64 = 65_536;
/// Most bytes behind the last tensor: padding, and no room for another file.
pub const TRAILING_CAP: u64 = 4096;

impl<'a> Gguf<'a> {
    /// Parses and validates; borrows everything from `bytes`.
    ///
    /// # Errors
    /// Names the broken rule, the key or tensor, and the byte offset.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let mut c = Cursor::new(bytes);
        let magic = c.take(4)?;
        if magic != MAGIC {
            return Err(Error::new(
                Code::Magic,
                format!("not a GGUF file: it begins with {:?}", magic.escape_ascii().to_string()),
            )
            .at(0)
            .hint("give a llama.cpp model file (*.gguf)"));
        }
        let version = c.u32()?;
        if version != 2 && version != 3 {
            let e = Error::new(Code::Version, format!("GGUF version {version}, only 2 and 3 are read")).at(4);
            let swapped = version.swap_bytes();
            return Err(if (1..=3).contains(&swapped) {
                e.hint("this is a big-endian GGUF; convert it to little-endian")
            } else {
                e.hint("convert the model again with a current llama.cpp")
            });
        }
        let n_tensors = c.u64()?;
        let n_kv = c.u64()?;
        // A key-value pair takes at least 13 bytes, a tensor entry at least 33.
        let n_kv = c.count(n_kv, 13, KV_CAP, "metadata keys").map_err(|e| e.at(16))?;
        let n_tensors = c.count(n_tensors, 33, TENSOR_CAP, "tensors").map_err(|e| e.at(8))?;
        let metadata = read_metadata(&mut c, n_kv)?;
        let metadata_end = c.offset();
        let by_key = by_name(n_kv, |i| metadata[i].0).map_err(|i| twice("key", bytes, metadata[i].0))?;
        let alignment = alignment(bytes, &metadata)?;
        let mut tensors = Vec::with_capacity(n_tensors);
        for _ in 0..n_tensors {
            tensors.push(read_tensor(&mut c)?);
        }
        let by_name = by_name(n_tensors, |i| tensors[i].name).map_err(|i| twice("tensor", bytes, tensors[i].name))?;
        let data_offset = c
            .offset()
            .checked_next_multiple_of(alignment as usize)
            .ok_or_else(|| Error::new(Code::Layout, "the header ends beyond all addresses").at(c.offset() as u64))?;
        place(&mut tensors, data_offset as u64, alignment, bytes)?;
        let files = vec![bytes];
        Ok(Self { files, version, alignment, data_offset, metadata, metadata_end, tensors, by_key, by_name })
    }

    /// Format version; as alignment and start of the data, of the first file.
    pub fn version(&self) -> u32 {
        self.version
    }
    /// Alignment of tensor data, in bytes.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }
    /// Where tensor data begins, in bytes.
    pub fn data_offset(&self) -> usize {
        self.data_offset
    }
    /// All metadata, in file order.
    pub fn metadata(&self) -> impl Iterator<Item = (&'a str, Value<'a>)> + '_ {
        self.metadata.iter().copied()
    }
    /// All tensors, in file order.
    pub fn tensors(&self) -> &[TensorInfo<'a>] {
        &self.tensors
    }
    /// One tensor.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo<'a>> {
        let i = self.by_name.binary_search_by(|i| self.tensors[*i as usize].name.cmp(name)).ok()?;
        Some(&self.tensors[self.by_name[i] as usize])
    }
    /// A tensor's bytes.
    pub fn data(&self, t: &TensorInfo<'a>) -> &'a [u8] {
        // `place` proved that every tensor lies inside the file.
        &self.files[t.file][t.offset as usize..(t.offset + t.len) as usize]
    }
    /// A key and its value as they lie in the first file; `i` counts [`Gguf::metadata`].
    pub(crate) fn raw_entry(&self, i: usize) -> &'a [u8] {
        let start =
            |i: usize| self.metadata.get(i).map_or(self.metadata_end, |(key, _)| entry(self.files[0], key) as usize);
        &self.files[0][start(i)..start(i + 1)]
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let i = self.by_key.binary_search_by(|i| self.metadata[*i as usize].0.cmp(key)).ok()?;
        Some(self.metadata[self.by_key[i] as usize].1)
    }

    /// A string, if the key is there.
    pub fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", |v| match v {
            Value::String(s) => Some(s),
            _ => None,
        })
    }
    /// A number that fits `u32`, whatever integer type it is stored as.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        self.typed(key, "a number from 0 to 2^32-1", |v| v.as_u32())
    }
    /// A float.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a float", |v| match v {
            Value::F32(f) => Some(f),
            Value::F64(f) => Some(f as f32),
            _ => None,
        })
    }
    /// A bool.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| match v {
            Value::Bool(b) => Some(b),
            _ => None,
        })
    }
    /// An array.
    pub fn array(&self, key: &str) -> Result<Option<Array<'a>>> {
        self.typed(key, "an array", |v| match v {
            Value::Array(a) => Some(a),
            _ => None,
        })
    }
    /// A string that must be there.
    pub fn required_str(&self, key: &str) -> Result<&'a str> {
        self.str(key)?.ok_or_else(|| missing(key))
    }
    /// A number that must be there.
    pub fn required_u32(&self, key: &str) -> Result<u32> {
        self.u32(key)?.ok_or_else(|| missing(key))
    }
    /// A float that must be there.
    pub fn required_f32(&self, key: &str) -> Result<f32> {
        self.f32(key)?.ok_or_else(|| missing(key))
    }

    fn typed<T>(&self, key: &str, what: &str, f: impl Fn(Value<'a>) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(v) => f(v).map(Some).ok_or_else(|| {
                Error::new(Code::Type, format!("{:?} where {what} is needed", v.value_type()))
                    .in_section(format!("key {key}"))
            }),
        }
    }
}

fn missing(key: &str) -> Error {
    Error::new(Code::Missing, format!("the file lacks the key {key}"))
        .in_section("metadata")
        .hint("the model was converted incompletely; convert it again")
}

fn read_metadata<'a>(c: &mut Cursor<'a>, n: usize) -> Result<Vec<(&'a str, Value<'a>)>> {
    let mut out = Vec::with_capacity(n);
    for _ in 0..n {
        let at = c.offset() as u64;
        let key = text(c).map_err(|e| e.in_section("metadata key"))?;
        let grammar = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        if key.is_empty() || key.len() > 255 || !key.bytes().all(grammar) {
            return Err(Error::new(
                Code::Text,
                format!("metadata key {:?} is not 1 to 255 of [A-Za-z0-9._-]", clip(key)),
            )
            .at(at));
        }
        let value = Value::read(c).map_err(|e| e.in_section(format!("key {key}")))?;
        out.push((key, value));
    }
    Ok(out)
}

/// The indices `0..n` in the order of their names.
///
/// # Errors
/// The index of a name that occurred before.
pub(super) fn by_name<'a>(n: usize, name: impl Fn(usize) -> &'a str) -> Result<Vec<u32>, usize> {
    let mut order: Vec<u32> = (0..n as u32).collect();
    order.sort_unstable_by_key(|i| name(*i as usize));
    // Equal names are neighbours now, the later one of unknown place among them.
    match order.windows(2).find(|w| name(w[0] as usize) == name(w[1] as usize)) {
        None => Ok(order),
        Some(w) => Err(w[0].max(w[1]) as usize),
    }
}

fn twice(what: &str, bytes: &[u8], name: &str) -> Error {
    Error::new(Code::Duplicate, format!("this {what} occurs twice"))
        .in_section(format!("{what} {name}"))
        .at(entry(bytes, name))
}

/// Where the entry begins that has this name: with the name's length.
fn entry(bytes: &[u8], name: &str) -> u64 {
    (name.as_ptr() as usize - bytes.as_ptr() as usize - 8) as u64
}

fn alignment(bytes: &[u8], metadata: &[(&str, Value<'_>)]) -> Result<u32> {
    match metadata.iter().find(|(k, _)| *k == "general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some((_, Value::U32(a))) if a.is_power_of_two() && (8..=4096).contains(a) => Ok(*a),
        Some((key, v)) => {
            let shown = match v.as_u32() {
                Some(n) => format!("{:?} {n}", v.value_type()),
                None => format!("{:?}", v.value_type()),
            };
            Err(Error::new(Code::Align, format!("{shown} is not a U32 power of two from 8 to 4096"))
                .in_section("key general.alignment")
                .at(entry(bytes, key)))
        }
    }
}

/// Reads one entry; `offset` is still relative to the data section and `len` not yet known.
fn read_tensor<'a>(c: &mut Cursor<'a>) -> Result<TensorInfo<'a>> {
    let at = c.offset() as u64;
    let name = text(c).map_err(|e| e.in_section("tensor name"))?;
    let bad = |code, m: String| Err(Error::new(code, m).in_section(format!("tensor {}", name.escape_debug())).at(at));
    if name.is_empty() || name.len() > 255 || name.bytes().any(|b| b < 0x20 || b == 0x7f) {
        return bad(Code::Text, "a tensor name is 1 to 255 bytes without control characters".into());
    }
    let n_dims = c.u32()? as usize;
    if n_dims == 0 || n_dims > 4 {
        return bad(Code::Shape, format!("{n_dims} dimensions, not 1 to 4"));
    }
    let mut ne = [1; 4];
    for d in &mut ne[..n_dims] {
        *d = c.u64()?;
    }
    let elements = ne.iter().try_fold(1u64, |p, d| p.checked_mul(*d)).filter(|p| *p > 0 && *p <= 1 << 46);
    if elements.is_none() {
        return bad(Code::Shape, format!("sizes {ne:?} are zero or overflow"));
    }
    let id = c.u32()?;
    let ty = QuantType::from_ggml(id).map_or(TensorType::Unknown(id), TensorType::Known);
    let offset = c.u64()?;
    Ok(TensorInfo { name, ty, ne, n_dims, file: 0, offset, len: 0 })
}

/// Turns relative offsets into absolute ones and proves the layout.
fn place(tensors: &mut [TensorInfo<'_>], data: u64, alignment: u32, bytes: &[u8]) -> Result<()> {
    let file = bytes.len() as u64;
    let next: Vec<Option<u64>> = (0..tensors.len()).map(|i| tensors.get(i + 1).map(|t| t.offset)).collect();
    let mut end = 0u64;
    for (t, next) in tensors.iter_mut().zip(next) {
        let bad =
            |code, m: String| Error::new(code, m).in_section(format!("tensor {}", t.name)).at(entry(bytes, t.name));
        if t.offset % u64::from(alignment) != 0 {
            return Err(bad(Code::Align, format!("offset {} is not a multiple of {alignment}", t.offset)));
        }
        if t.offset != end {
            return Err(bad(
                Code::Layout,
                format!("data at offset {} where {end} is due: a gap or an overlap", t.offset),
            ));
        }
        let absolute = data.checked_add(t.offset).filter(|a| *a <= file);
        let len = match t.ty {
            TensorType::Known(q) => {
                let row = usize::try_from(t.cols()).ok().and_then(|n| q.row_bytes(n)).ok_or_else(|| {
                    bad(Code::Shape, format!("rows of {} numbers are not whole {} blocks", t.cols(), q.name()))
                })?;
                (row as u64).checked_mul(t.rows())
            }
            TensorType::Unknown(_) => match (next, absolute) {
                (Some(n), _) => n.checked_sub(t.offset),
                (None, Some(a)) => Some(file - a),
                (None, None) => None,
            },
        };
        let whole = absolute.zip(len).filter(|(a, l)| a.checked_add(*l).is_some_and(|e| e <= file));
        let Some((absolute, len)) = whole else {
            return Err(bad(Code::Truncated, format!("its data end beyond the file's {file} bytes"))
                .hint("the file is cut short; download or copy it again"));
        };
        end = (t.offset + len)
            .checked_next_multiple_of(u64::from(alignment))
            .ok_or_else(|| bad(Code::Layout, "its end cannot be aligned".into()))?;
        (t.offset, t.len) = (absolute, len);
    }
    // The padding of the last tensor may be missing.
    let rest = bytes.get((data + end).min(file) as usize..).unwrap_or_default();
    if rest.len() as u64 > TRAILING_CAP || rest.iter().any(|b| *b != 0) {
        return Err(Error::new(Code::Layout, format!("{} bytes behind the last tensor", rest.len()))
            .at(data + end)
            .hint("another file was appended, or the model was converted badly; convert or copy it again"));
    }
    Ok(())
}
