//! Quant blocks: the GGUF tensor types this project computes with.
//!
//! One file per type (`quant/q4_0.rs`, ...): the block as a zerocopy struct with a const size
//! assert, scalar dequantize, scalar dot, and quantize where we write that type. They are the
//! specification every fast kernel is checked against.

/// A tensor type that can be run. Anything else in a file is listed, and refused on use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum QuantType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 32 numbers: f16 scale, 32 x i8.
    Q8_0,
    /// 32 numbers: f16 scale, 4-bit, offset 8.
    Q4_0,
    /// 32 numbers: f16 scale, f16 minimum, 4-bit.
    Q4_1,
    /// 32 numbers: f16 scale, 5-bit, offset 16.
    Q5_0,
    /// 32 numbers: f16 scale, f16 minimum, 5-bit.
    Q5_1,
    /// 256 numbers: 8 sub-blocks with 6-bit scales and minima, 4-bit.
    Q4K,
    /// 256 numbers: 8 sub-blocks with 6-bit scales and minima, 5-bit.
    Q5K,
    /// 256 numbers: 16 sub-blocks with 8-bit scales, 6-bit.
    Q6K,
}

impl QuantType {
    /// Every type, in the order of the enum.
    pub const ALL: [Self; 11] = [
        Self::F32,
        Self::F16,
        Self::BF16,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// (ggml type id, name, numbers per block, bytes per block).
    const fn facts(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 18),
            Self::Q4_1 => (3, "Q4_1", 32, 20),
            Self::Q5_0 => (6, "Q5_0", 32, 22),
            Self::Q5_1 => (7, "Q5_1", 32, 24),
            Self::Q8_0 => (8, "Q8_0", 32, 34),
            Self::Q4K => (12, "Q4_K", 256, 144),
            Self::Q5K => (13, "Q5_K", 256, 176),
            Self::Q6K => (14, "Q6_K", 256, 210),
            Self::BF16 => (30, "BF16", 1, 2),
        }
    }

    /// The id used in GGUF files.
    pub const fn ggml_id(self) -> u32 {
        self.facts().0
    }
    /// The name llama.cpp prints.
    pub const fn name(self) -> &'static str {
        self.facts().1
    }
    /// Numbers per block.
    pub const fn block_len(self) -> usize {
        self.facts().2
    }
    /// Bytes per block.
    pub const fn block_bytes(self) -> usize {
        self.facts().3
    }
    /// The type with this GGUF id, if it can be run.
    pub fn from_ggml(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.ggml_id() == id)
    }
    /// The type with this name (as in flags), if any.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(name))
    }
    /// Bytes of a row of `n` numbers; `None` if `n` is not a whole number of blocks or overflows.
    pub const fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }
}

mod float;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;

use crate::{Code, Error, Result};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// A block of a quantized type, as it lies in a file.
pub trait Block: FromBytes + Immutable + KnownLayout + Unaligned {
    /// Numbers in the block.
    const LEN: usize;
    /// Writes the block's numbers to `out[..LEN]`.
    fn dequantize(&self, out: &mut [f32]);
}

/// The blocks in `bytes`; `None` if they are not whole blocks.
pub fn blocks<B: Block>(bytes: &[u8]) -> Option<&[B]> {
    <[B]>::ref_from_bytes(bytes).ok()
}

/// Turns `bytes` of type `ty` into `out.len()` numbers.
///
/// # Panics
/// If `bytes` is not exactly the size of `out.len()` numbers of this type.
#[inline(always)]
pub fn dequantize(ty: QuantType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        ty.row_bytes(out.len()),
        Some(bytes.len()),
        "{} bytes are not {} numbers of {}",
        bytes.len(),
        out.len(),
        ty.name()
    );
    match ty {
        QuantType::F32 => float::f32s(bytes, out),
        QuantType::F16 => float::f16s(bytes, out),
        QuantType::BF16 => float::bf16s(bytes, out),
        QuantType::Q8_0 => each::<q8_0::BlockQ8_0>(bytes, out),
        QuantType::Q4_0 => each::<q4_0::BlockQ4_0>(bytes, out),
        QuantType::Q4_1 => each::<q4_1::BlockQ4_1>(bytes, out),
        QuantType::Q5_0 => each::<q5_0::BlockQ5_0>(bytes, out),
        QuantType::Q5_1 => each::<q5_1::BlockQ5_1>(bytes, out),
        QuantType::Q4K => each::<q4_k::BlockQ4K>(bytes, out),
        QuantType::Q5K => each::<q5_k::BlockQ5K>(bytes, out),
        QuantType::Q6K => each::<q6_k::BlockQ6K>(bytes, out),
    }
}

#[inline(always)]
fn each<B: Block>(bytes: &[u8], out: &mut [f32]) {
    let blocks = blocks::<B>(bytes).unwrap_or_default();
    blocks.iter().zip(out.chunks_exact_mut(B::LEN)).for_each(|(b, o)| b.dequantize(o));
}

/// Scalar reference of a dot product: `Σ w[i] · x[i]`, accumulated in `f64`.
///
/// # Panics
/// As [`dequantize`].
pub fn dot(ty: QuantType, bytes: &[u8], x: &[f32]) -> f32 {
    let mut w = vec![0.0; x.len()];
    dequantize(ty, bytes, &mut w);
    w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

/// Quantizes whole rows; the rounding is llama.cpp's reference rounding.
///
/// # Errors
/// If the type is not written by this project, `x` is not whole blocks, or a number is not finite.
pub fn quantize(ty: QuantType, x: &[f32]) -> Result<Vec<u8>> {
    let Some(size) = ty.row_bytes(x.len()) else {
        return Err(Error::new(Code::Shape, format!("{} numbers are not whole {} blocks", x.len(), ty.name())));
    };
    if let Some(i) = x.iter().position(|v| !v.is_finite()) {
        return Err(Error::new(Code::NotFinite, format!("number {i} is {}", x[i])));
    }
    let mut out = Vec::with_capacity(size);
    match ty {
        QuantType::F32 => x.iter().for_each(|v| out.extend(v.to_le_bytes())),
        QuantType::F16 => x.iter().for_each(|v| out.extend(half::f16::from_f32(*v).to_le_bytes())),
        QuantType::BF16 => x.iter().for_each(|v| out.extend(half::bf16::from_f32(*v).to_le_bytes())),
        QuantType::Q8_0 => x.chunks_exact(32).for_each(|c| q8_0::quantize(c, &mut out)),
        QuantType::Q4_0 => x.chunks_exact(32).for_each(|c| q4_0::quantize(c, &mut out)),
        QuantType::Q4_1 => x.chunks_exact(32).for_each(|c| q4_1::quantize(c, &mut out)),
        other => {
            return Err(Error::new(Code::Unsupported, format!("{} is read but not written", other.name()))
                .hint("write F32 F16 BF16 Q8_0 Q4_0 or Q4_1"));
        }
    }
    Ok(out)
}

/// A little-endian f16 as it lies in a block.
///
/// Written out because `half`'s own conversion asks the processor for its features at every call
/// and cannot be inlined into vector code.
#[inline(always)]
pub fn f16(bytes: [u8; 2]) -> f32 {
    let h = u32::from(u16::from_le_bytes(bytes));
    let magnitude = (h & 0x7fff) << 13;
    // Multiplying by 2^112 re-biases the exponent and normalises subnormals exactly.
    let value = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let value = if magnitude >= 0x0f80_0000 { f32::from_bits(magnitude | 0x7f80_0000) } else { value };
    f32::from_bits(value.to_bits() | (h & 0x8000) << 16)
}

#[cfg(test)]
mod tests;
