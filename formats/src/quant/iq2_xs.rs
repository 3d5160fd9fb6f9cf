//! IQ2_XS: 256 numbers in 16 runs of 16, each two points of eight magnitudes with signs.

use super::grids::{self, MAX_8, eight, even_signs};
use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// IQ2_XS: 256 numbers in 16 runs of 16, each two points of eight magnitudes with signs.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIq2Xs {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Nine bits of a point, seven of its signs.
    pub qs: [[u8; 2]; 32],
    /// Four-bit scales, two runs in a byte.
    pub scales: [u8; 8],
}

const _: () = assert!(size_of::<BlockIq2Xs>() == 74);

impl Block for BlockIq2Xs {
    const GGML_ID: u32 = 17;
    const NAME: &'static str = "IQ2_XS";
    const LEN: usize = 256;
    const RUN: usize = 16;
    const BITS: u32 = 7;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        two_bit_scales(H::f32(self.d), &self.scales, scale, min);
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (q, c) in self.qs.iter().zip(codes.chunks_exact_mut(8)) {
            let q = u16::from_le_bytes(*q);
            grids::put(c, &eight(grids::IQ2_XS[usize::from(q & 511)]), even_signs(u32::from(q >> 9)), MAX_8);
        }
    }
}

/// The scales of sixteen runs; IQ2_S has them too.
#[inline(always)]
pub(super) fn two_bit_scales(d: f32, nibbles: &[u8; 8], scale: &mut [f32], min: &mut [f32]) {
    for i in 0..16 {
        let s = d * (0.5 + f32::from(nibbles[i / 2] >> (i % 2 * 4) & 15)) * 0.25;
        (scale[i], min[i]) = (s, -f32::from(MAX_8) * s);
    }
}
