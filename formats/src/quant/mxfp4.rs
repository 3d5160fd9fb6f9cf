//! MXFP4: 32 numbers of four bits (sign, two bits of exponent, one of mantissa) times a power of two.

use super::{Block, Half, nibbles};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// MXFP4: 32 numbers of four bits (sign, two bits of exponent, one of mantissa) times a power of two.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockMxfp4 {
    /// The power of two, biased by 127.
    pub e: u8,
    /// Nibbles: places in the table; low ones are the first 16.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockMxfp4>() == 17);

impl Block for BlockMxfp4 {
    const GGML_ID: u32 = 39;
    const NAME: &'static str = "MXFP4";
    const LEN: usize = 32;
    const RUN: usize = 32;
    const BITS: u32 = 5;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let d = half_power(self.e);
        (scale[0], min[0]) = (d, -12.0 * d);
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        nibbles(&self.qs, codes);
        codes[..32].iter_mut().for_each(|c| *c = TABLE[usize::from(*c)]);
    }
}

/// `2^(e - 128)`: half the power that the block names, because the table holds doubled numbers.
#[inline(always)]
fn half_power(e: u8) -> f32 {
    // The two smallest are subnormal.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { u32::from(e - 1) << 23 })
}

/// The numbers 0, 0.5, 1, 1.5, 2, 3, 4, 6 and the same with a minus, doubled, plus 12.
pub const TABLE: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];
