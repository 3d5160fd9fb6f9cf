//! IQ4_NL: 32 numbers as `d · table[q]`; low nibbles hold the first 16.

use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// IQ4_NL: 32 numbers as `d · table[q]`; low nibbles hold the first 16.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIq4Nl {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Nibbles: places in the table.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockIq4Nl>() == 18);

impl Block for BlockIq4Nl {
    const GGML_ID: u32 = 20;
    const NAME: &'static str = "IQ4_NL";
    const LEN: usize = 32;
    const RUN: usize = 32;
    const BITS: u32 = 8;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        (scale[0], min[0]) = (H::f32(self.d), -128.0 * H::f32(self.d));
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (i, q) in self.qs.into_iter().enumerate() {
            (codes[i], codes[i + 16]) = (TABLE[usize::from(q & 15)], TABLE[usize::from(q >> 4)]);
        }
    }
}

/// llama.cpp's non-linear levels -127 ..= 113, plus 128.
pub const TABLE: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];
