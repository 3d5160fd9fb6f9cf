//! IQ2_S: 256 numbers in 16 runs of 16, each two points of eight magnitudes with signs.

use super::grids::{self, MAX_8, eight};
use super::iq2_xs::two_bit_scales;
use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// IQ2_S: 256 numbers in 16 runs of 16, each two points of eight magnitudes with signs.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIq2S {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Low eight bits of the points.
    pub qs: [u8; 32],
    /// Signs, one bit each.
    pub signs: [u8; 32],
    /// High two bits of the points, four in a byte.
    pub qh: [u8; 8],
    /// Four-bit scales, two runs in a byte.
    pub scales: [u8; 8],
}

const _: () = assert!(size_of::<BlockIq2S>() == 82);

impl Block for BlockIq2S {
    const GGML_ID: u32 = 22;
    const NAME: &'static str = "IQ2_S";
    const LEN: usize = 256;
    const RUN: usize = 16;
    const BITS: u32 = 7;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        two_bit_scales(H::f32(self.d), &self.scales, scale, min);
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (i, c) in codes.chunks_exact_mut(8).enumerate() {
            let high = usize::from(self.qh[i / 4] >> (i % 4 * 2) & 3);
            let point = grids::IQ2_S[usize::from(self.qs[i]) | high << 8];
            grids::put(c, &eight(point), self.signs[i], MAX_8);
        }
    }
}
