//! IQ3_S: 256 numbers in 8 runs of 32, each eight points of four odd magnitudes with signs.

use super::grids::{self, four};
use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// IQ3_S: 256 numbers in 8 runs of 32, each eight points of four odd magnitudes with signs.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIq3S {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Low eight bits of the points.
    pub qs: [u8; 64],
    /// Ninth bits of the points.
    pub qh: [u8; 8],
    /// Signs, one bit each.
    pub signs: [u8; 32],
    /// Four-bit scales, two runs in a byte.
    pub scales: [u8; 4],
}

const _: () = assert!(size_of::<BlockIq3S>() == 110);

impl Block for BlockIq3S {
    const GGML_ID: u32 = 21;
    const NAME: &'static str = "IQ3_S";
    const LEN: usize = 256;
    const RUN: usize = 32;
    const BITS: u32 = 5;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let d = H::f32(self.d);
        for i in 0..8 {
            let s = d * (1.0 + 2.0 * f32::from(self.scales[i / 2] >> (i % 2 * 4) & 15));
            (scale[i], min[i]) = (s, -15.0 * s);
        }
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (i, c) in codes.chunks_exact_mut(4).enumerate() {
            let high = usize::from(self.qh[i / 8] >> (i % 8) & 1);
            let magnitudes = four(grids::IQ3_S[usize::from(self.qs[i]) | high << 8], &LEVELS);
            grids::put(c, &magnitudes, self.signs[i / 2] >> (i % 2 * 4), 15);
        }
    }
}

/// The magnitudes.
const LEVELS: [u8; 8] = [1, 3, 5, 7, 9, 11, 13, 15];
