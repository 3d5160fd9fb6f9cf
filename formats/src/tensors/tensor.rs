//! One tensor of a payload, borrowed, and the types its values can have.

use crate::quant::{QuantType, dequantize};

/// The types of value that a payload may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Dtype {
    F32,
    F16,
    BF16,
    I32,
    U8,
}

impl Dtype {
    /// Bytes of one value.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::U8 => 1,
        }
    }
    /// The name used in headers.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::I32 => "I32",
            Self::U8 => "U8",
        }
    }
}

/// One tensor, borrowed.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<'a> {
    /// Type of its values.
    pub dtype: Dtype,
    /// Sizes, slowest dimension first.
    pub shape: Vec<usize>,
    /// Little-endian bytes.
    pub data: &'a [u8],
}

impl Tensor<'_> {
    /// Its values as `f32`.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut out = vec![0.0; self.data.len() / self.dtype.size()];
        let ty = match self.dtype {
            Dtype::F32 => QuantType::F32,
            Dtype::F16 => QuantType::F16,
            Dtype::BF16 => QuantType::BF16,
            Dtype::I32 => return self.to_i32().iter().map(|v| *v as f32).collect(),
            Dtype::U8 => return self.data.iter().map(|v| f32::from(*v)).collect(),
        };
        dequantize(ty, self.data, &mut out);
        out
    }

    /// Its values as `i32`; empty if it does not hold I32.
    pub fn to_i32(&self) -> Vec<i32> {
        if self.dtype != Dtype::I32 {
            return Vec::new();
        }
        self.data.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }
}
