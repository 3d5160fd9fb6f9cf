//! Metadata values, borrowed from the file.

use crate::bytes::Cursor;
use crate::{Code, Error, Result};

/// The value types of GGUF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    pub(crate) fn from_id(id: u32) -> Result<Self> {
        Self::ALL
            .get(id as usize)
            .copied()
            .ok_or_else(|| Error::new(Code::Type, format!("metadata value type {id} does not exist")))
    }

    pub(crate) fn id(self) -> u32 {
        Self::ALL.iter().position(|t| *t == self).unwrap_or(0) as u32
    }

    /// Bytes of a fixed-size value; for strings the least, an empty one.
    pub(crate) fn min_size(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

/// One metadata value.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array whose elements are read when asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Array<'a> {
    ty: ValueType,
    len: usize,
    bytes: &'a [u8],
}

const STRING_CAP: u64 = 16 << 20;
const ARRAY_CAP: u64 = 4 << 20;

pub(crate) fn string<'a>(c: &mut Cursor<'a>) -> Result<&'a [u8]> {
    let at = c.offset() as u64;
    let len = c.u64()?;
    if len > STRING_CAP {
        return Err(Error::new(Code::Cap, format!("a string of {len} bytes, cap {STRING_CAP}")).at(at));
    }
    c.take(len)
}

pub(crate) fn text<'a>(c: &mut Cursor<'a>) -> Result<&'a str> {
    let at = c.offset() as u64;
    std::str::from_utf8(string(c)?).map_err(|_| Error::new(Code::Text, "a string is not UTF-8").at(at))
}

impl<'a> Value<'a> {
    pub(crate) fn read(c: &mut Cursor<'a>) -> Result<Self> {
        let at = c.offset() as u64;
        let ty = ValueType::from_id(c.u32()?).map_err(|e| e.at(at))?;
        Ok(match ty {
            ValueType::U8 => Self::U8(c.u8()?),
            ValueType::I8 => Self::I8(c.u8()? as i8),
            ValueType::U16 => Self::U16(c.u16()?),
            ValueType::I16 => Self::I16(c.u16()? as i16),
            ValueType::U32 => Self::U32(c.u32()?),
            ValueType::I32 => Self::I32(c.u32()? as i32),
            ValueType::F32 => Self::F32(f32::from_bits(c.u32()?)),
            ValueType::U64 => Self::U64(c.u64()?),
            ValueType::I64 => Self::I64(c.u64()? as i64),
            ValueType::F64 => Self::F64(f64::from_bits(c.u64()?)),
            ValueType::Bool => match c.u8()? {
                0 => Self::Bool(false),
                1 => Self::Bool(true),
                b => return Err(Error::new(Code::Value, format!("a bool of value {b}")).at(at)),
            },
            ValueType::String => Self::String(text(c)?),
            ValueType::Array => Self::Array(Array::read(c)?),
        })
    }

    /// Its type, for messages.
    pub fn value_type(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// Any non-negative integer that fits.
    pub(crate) fn as_u32(&self) -> Option<u32> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::U32(v) => Some(v),
            Self::U64(v) => v.try_into().ok(),
            Self::I8(v) => v.try_into().ok(),
            Self::I16(v) => v.try_into().ok(),
            Self::I32(v) => v.try_into().ok(),
            Self::I64(v) => v.try_into().ok(),
            _ => None,
        }
    }
}

impl<'a> Array<'a> {
    fn read(c: &mut Cursor<'a>) -> Result<Self> {
        let at = c.offset() as u64;
        let ty = ValueType::from_id(c.u32()?).map_err(|e| e.at(at))?;
        if ty == ValueType::Array {
            return Err(Error::new(Code::Unsupported, "arrays of arrays are not allowed").at(at));
        }
        let n = c.u64()?;
        let len = c.count(n, ty.min_size(), ARRAY_CAP, "array elements").map_err(|e| e.at(at + 4))?;
        // Strings must be walked to find the end; the walk also validates their lengths.
        let mut end = c.clone();
        if ty == ValueType::String {
            for _ in 0..len {
                string(&mut end)?;
            }
        } else {
            end.take(ty.min_size() * len as u64)?;
        }
        let bytes = c.take((end.offset() - c.offset()) as u64)?;
        Ok(Self { ty, len, bytes })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
    /// Type of its elements.
    pub fn element_type(&self) -> ValueType {
        self.ty
    }

    /// The elements as they lie in the file.
    pub fn raw(&self) -> &'a [u8] {
        self.bytes
    }

    /// The elements of an array of strings, as raw bytes (tokens need not be UTF-8).
    pub fn strings(&self) -> Result<impl Iterator<Item = &'a [u8]> + use<'a>> {
        self.expect(&[ValueType::String])?;
        let mut c = Cursor::new(self.bytes);
        // Lengths were validated when the array was read.
        Ok((0..self.len).map_while(move |_| string(&mut c).ok()))
    }

    /// The elements of an array of 32-bit integers.
    pub fn i32s(&self) -> Result<impl Iterator<Item = i32> + use<'a>> {
        self.expect(&[ValueType::I32, ValueType::U32])?;
        Ok(self.bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])))
    }

    /// The elements of an array of flags.
    pub fn bools(&self) -> Result<impl Iterator<Item = bool> + use<'a>> {
        self.expect(&[ValueType::Bool])?;
        Ok(self.bytes.iter().map(|b| *b != 0))
    }

    /// The elements of an array of floats.
    pub fn f32s(&self) -> Result<impl Iterator<Item = f32> + use<'a>> {
        self.expect(&[ValueType::F32])?;
        Ok(self.bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
    }

    fn expect(&self, types: &[ValueType]) -> Result<()> {
        if types.contains(&self.ty) {
            return Ok(());
        }
        Err(Error::new(Code::Type, format!("array of {:?} where {:?} is needed", self.ty, types[0])))
    }
}
