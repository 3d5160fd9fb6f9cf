//! Q5_0: 32 numbers as `d · (q - 16)`; the fifth bits stand apart.

use super::{Block, Half, fifth_bits, nibbles};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q5_0: 32 numbers as `d · (q - 16)`; the fifth bits stand apart.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Fifth bits, number i at bit i.
    pub qh: [u8; 4],
    /// Low nibbles.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_0>() == 22);

impl Block for BlockQ5_0 {
    const GGML_ID: u32 = 6;
    const NAME: &'static str = "Q5_0";
    const LEN: usize = 32;
    const RUN: usize = 32;
    const BITS: u32 = 5;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        (scale[0], min[0]) = (H::f32(self.d), -16.0 * H::f32(self.d));
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        nibbles(&self.qs, codes);
        fifth_bits(self.qh, codes);
    }
}
