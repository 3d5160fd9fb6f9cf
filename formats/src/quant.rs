//! Quant blocks: the GGUF tensor types this project computes with.
//!
//! A quantized type is one file (`quant/q4_0.rs`, ...): the block as it lies in a file, and a [`Block`] that says
//! how its codes and scales become numbers. Each is listed once, in [`QuantType`]. [`dequantize`] and [`dot`] are the
//! scalar references that every fast kernel is checked against.

mod float;
mod grids;
pub mod iq2_s;
pub mod iq2_xs;
pub mod iq2_xxs;
pub mod iq3_s;
pub mod iq3_xxs;
pub mod iq4_nl;
pub mod iq4_xs;
pub mod mxfp4;
pub mod q2_k;
pub mod q3_k;
pub mod q4_0;
pub mod q4_1;
pub mod q4_k;
pub mod q5_0;
pub mod q5_1;
pub mod q5_k;
pub mod q6_k;
pub mod q8_0;
mod search;
pub mod tq1_0;
pub mod tq2_0;

use crate::{Code, Error, Result};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Declares [`QuantType`] and [`with_block!`] from the two lists below. `$d` is a dollar sign, which the inner macro
/// needs and an outer one cannot spell.
macro_rules! quant_types {
    (
        $d:tt
        floats { $($(#[$float_doc:meta])* $Float:ident = ($id:literal, $name:literal, $bytes:literal),)* }
        blocks { $($(#[$doc:meta])* $Type:ident = $file:ident::$Block:ident,)* }
    ) => {
        /// A tensor type that can be run. Anything else in a file is listed, and refused on use.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum QuantType {
            $($(#[$float_doc])* $Float,)*
            $($(#[$doc])* $Type,)*
        }

        impl QuantType {
            /// Every type, in the order of the enum.
            pub const ALL: [Self; Self::COUNT] = [$(Self::$Float,)* $(Self::$Type,)*];
            const COUNT: usize = [$(stringify!($Float),)* $(stringify!($Type),)*].len();

            /// (ggml type id, name, numbers per block, bytes per block).
            const fn facts(self) -> (u32, &'static str, usize, usize) {
                match self {
                    $(Self::$Float => ($id, $name, 1, $bytes),)*
                    $(Self::$Type => {
                        type B = $file::$Block;
                        (B::GGML_ID, B::NAME, B::LEN, size_of::<B>())
                    })*
                }
            }
        }

        /// Runs `$body` with `$Block` bound to the block struct of a quantized type; `$float` for the
        /// types that are plain floats.
        #[macro_export]
        macro_rules! with_block {
            ($d ty:expr, $d Block:ident => $d body:expr, float => $d float:expr) => {
                match $d ty {
                    $($crate::quant::QuantType::$Float)|* => $d float,
                    $($crate::quant::QuantType::$Type => {
                        type $d Block = $crate::quant::$file::$Block;
                        $d body
                    })*
                }
            };
        }
    };
}

quant_types! {
    $
    floats {
        /// IEEE single.
        F32 = (0, "F32", 4),
        /// IEEE half.
        F16 = (1, "F16", 2),
        /// bfloat16.
        BF16 = (30, "BF16", 2),
    }
    blocks {
        /// 32 numbers: f16 scale, 32 x i8.
        Q8_0 = q8_0::BlockQ8_0,
        /// 32 numbers: f16 scale, 4-bit, offset 8.
        Q4_0 = q4_0::BlockQ4_0,
        /// 32 numbers: f16 scale, f16 minimum, 4-bit.
        Q4_1 = q4_1::BlockQ4_1,
        /// 32 numbers: f16 scale, 5-bit, offset 16.
        Q5_0 = q5_0::BlockQ5_0,
        /// 32 numbers: f16 scale, f16 minimum, 5-bit.
        Q5_1 = q5_1::BlockQ5_1,
        /// 256 numbers: 8 sub-blocks with 6-bit scales and minima, 4-bit.
        Q4K = q4_k::BlockQ4K,
        /// 256 numbers: 8 sub-blocks with 6-bit scales and minima, 5-bit.
        Q5K = q5_k::BlockQ5K,
        /// 256 numbers: 16 sub-blocks with 8-bit scales, 6-bit.
        Q6K = q6_k::BlockQ6K,
        /// 256 numbers: 16 sub-blocks with 4-bit scales and minima, 2-bit.
        Q2K = q2_k::BlockQ2K,
        /// 256 numbers: 16 sub-blocks with 6-bit scales, 3-bit.
        Q3K = q3_k::BlockQ3K,
        /// 32 numbers: f16 scale, 4-bit places in a table of uneven levels.
        Iq4Nl = iq4_nl::BlockIq4Nl,
        /// 256 numbers: 8 sub-blocks with 6-bit scales, 4-bit places in the table of IQ4_NL.
        Iq4Xs = iq4_xs::BlockIq4Xs,
        /// 256 numbers: 8 sub-blocks with 4-bit scales, points of four magnitudes.
        Iq3S = iq3_s::BlockIq3S,
        /// 256 numbers: 8 sub-blocks with 4-bit scales, points of four magnitudes.
        Iq3Xxs = iq3_xxs::BlockIq3Xxs,
        /// 256 numbers: 16 sub-blocks with 4-bit scales, points of eight magnitudes.
        Iq2S = iq2_s::BlockIq2S,
        /// 256 numbers: 16 sub-blocks with 4-bit scales, points of eight magnitudes.
        Iq2Xs = iq2_xs::BlockIq2Xs,
        /// 256 numbers: 8 sub-blocks with 4-bit scales, points of eight magnitudes.
        Iq2Xxs = iq2_xxs::BlockIq2Xxs,
        /// 32 numbers: a power of two, floats of four bits.
        Mxfp4 = mxfp4::BlockMxfp4,
        /// 256 numbers: f16 scale, -1, 0 or 1, five in a byte.
        Tq1_0 = tq1_0::BlockTq1_0,
        /// 256 numbers: f16 scale, -1, 0 or 1, four in a byte.
        Tq2_0 = tq2_0::BlockTq2_0,
    }
}

impl QuantType {
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
    /// The names of all types, for people.
    pub fn names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
    /// Bytes of a row of `n` numbers; `None` if `n` is not a whole number of blocks or overflows.
    pub const fn row_bytes(self, n: usize) -> Option<usize> {
        if !n.is_multiple_of(self.block_len()) {
            return None;
        }
        (n / self.block_len()).checked_mul(self.block_bytes())
    }
}

/// The name in llama.cpp (`ggml.h`) of a type that cannot be run here.
pub(crate) fn foreign_name(ggml_id: u32) -> Option<&'static str> {
    Some(match ggml_id {
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        19 => "IQ1_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        40 => "NVFP4",
        41 => "Q1_0",
        42 => "Q2_0",
        _ => return None,
    })
}

/// How the half-precision scales of a block become single precision. All ways give the same number;
/// a processor's own instruction is the faster one.
pub trait Half {
    /// A little-endian f16.
    fn f32(bytes: [u8; 2]) -> f32;

    /// Two at once, such as a scale and a minimum side by side.
    #[inline(always)]
    fn two(a: [u8; 2], b: [u8; 2]) -> (f32, f32) {
        (Self::f32(a), Self::f32(b))
    }
}

/// [`f16()`], on any processor.
#[derive(Debug, Clone, Copy)]
pub struct Portable;

impl Half for Portable {
    #[inline(always)]
    fn f32(bytes: [u8; 2]) -> f32 {
        f16(bytes)
    }
}

/// A block of a quantized type, as it lies in a file: small unsigned integers (codes), and a scale and a
/// minimum for each run of them.
pub trait Block: FromBytes + Immutable + KnownLayout + Unaligned {
    /// The type's id in GGUF files.
    const GGML_ID: u32;
    /// The name llama.cpp prints.
    const NAME: &'static str;
    /// Numbers in a block.
    const LEN: usize;
    /// Numbers that share a scale and a minimum: 16 or 32.
    const RUN: usize;
    /// Bits of the largest code.
    const BITS: u32;
    /// Appends one block made of [`Block::LEN`] numbers, for the types that this project writes.
    const QUANTIZE: Option<fn(&[f32], &mut Vec<u8>)> = None;

    /// Number `i` of the block is `scale[i / RUN] · codes[i] + min[i / RUN]`; `H` turns what is stored
    /// in half precision.
    ///
    /// # Panics
    /// If the slices are shorter than the block's runs.
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]);

    /// The codes.
    ///
    /// # Panics
    /// If the slice is shorter than the block.
    fn codes(&self, codes: &mut [u8]);

    /// Writes the block's numbers to `out`.
    #[inline(always)]
    fn dequantize<H: Half>(&self, out: &mut [f32]) {
        let (mut codes, mut scale, mut min) = ([0; 256], [0.0; 16], [0.0; 16]);
        self.codes(&mut codes);
        self.scales::<H>(&mut scale, &mut min);
        for (i, (out, codes)) in out.chunks_exact_mut(Self::RUN).zip(codes.chunks_exact(Self::RUN)).enumerate() {
            let (d, m) = (scale[i], min[i]);
            out.iter_mut().zip(codes).for_each(|(o, c)| *o = d * f32::from(*c) + m);
        }
    }
}

/// The nibbles of 16 bytes: low ones are numbers 0..16, high ones 16..32.
#[inline(always)]
fn nibbles(qs: &[u8; 16], codes: &mut [u8]) {
    for (i, q) in qs.iter().enumerate() {
        (codes[i], codes[i + 16]) = (q & 15, q >> 4);
    }
}

/// Adds the fifth bits, that of number `i` at bit `i`.
#[inline(always)]
fn fifth_bits(qh: [u8; 4], codes: &mut [u8]) {
    let qh = u32::from_le_bytes(qh);
    for (i, c) in codes[..32].iter_mut().enumerate() {
        *c |= ((qh >> i & 1) as u8) << 4;
    }
}

/// Appends the fifth bits of 32 codes and their low nibbles.
fn put_five(out: &mut Vec<u8>, code: impl Fn(usize) -> u8) {
    let codes: [u8; 32] = std::array::from_fn(code);
    let high = codes.iter().enumerate().fold(0u32, |bits, (i, c)| bits | u32::from(c >> 4) << i);
    out.extend(high.to_le_bytes());
    out.extend((0..16).map(|i| codes[i] & 15 | codes[i + 16] << 4));
}

/// Appends 256 codes of two bits: four runs of 32 in each 32 bytes.
fn put_two(out: &mut Vec<u8>, codes: &[u8; 256]) {
    for half in codes.chunks_exact(128) {
        out.extend((0..32).map(|i| (0..4).fold(0, |byte, k| byte | half[i + 32 * k] << (2 * k))));
    }
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
    with_block!(ty, B => {
        let blocks = blocks::<B>(bytes).unwrap_or_default();
        blocks.iter().zip(out.chunks_exact_mut(ty.block_len())).for_each(|(b, o)| b.dequantize::<Portable>(o));
    }, float => match ty {
        QuantType::F16 => float::f16s(bytes, out),
        QuantType::BF16 => float::bf16s(bytes, out),
        _ => float::f32s(bytes, out),
    });
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
    let too_large = |v: &f32| half::f16::from_f32(*v).is_infinite();
    if let Some(i) = x.iter().position(|v| ty == QuantType::F16 && too_large(v)) {
        return Err(Error::new(Code::NotFinite, format!("number {i} is {}, which F16 cannot hold", x[i]))
            .hint("write BF16 or F32"));
    }
    let mut out = Vec::with_capacity(size);
    with_block!(ty, B => match B::QUANTIZE {
        Some(quantize) => x.chunks_exact(B::LEN).for_each(|block| quantize(block, &mut out)),
        None => {
            return Err(Error::new(Code::Unsupported, format!("{} is read but not written", ty.name()))
                .hint(format!("write {}", written().join(", "))));
        }
    }, float => match ty {
        QuantType::F16 => x.iter().for_each(|v| out.extend(half::f16::from_f32(*v).to_le_bytes())),
        QuantType::BF16 => x.iter().for_each(|v| out.extend(half::bf16::from_f32(*v).to_le_bytes())),
        _ => x.iter().for_each(|v| out.extend(v.to_le_bytes())),
    });
    Ok(out)
}

/// Names of the types that [`quantize`] writes.
fn written() -> Vec<&'static str> {
    let writes = |ty: QuantType| with_block!(ty, B => B::QUANTIZE.is_some(), float => true);
    QuantType::ALL.into_iter().filter(|ty| writes(*ty)).map(QuantType::name).collect()
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
