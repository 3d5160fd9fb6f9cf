//! IQ3_XXS: 256 numbers in 8 runs of 32, each eight points of four magnitudes with signs.

use super::grids::{self, even_signs, four};
use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// IQ3_XXS: 256 numbers in 8 runs of 32, each eight points of four magnitudes with signs.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIq3Xxs {
    /// Scale, f16.
    pub d: [u8; 2],
    /// The points.
    pub qs: [[u8; 8]; 8],
    /// Of each run: 28 bits of signs and four of scale.
    pub signs: [[u8; 4]; 8],
}

const _: () = assert!(size_of::<BlockIq3Xxs>() == 98);

impl Block for BlockIq3Xxs {
    const GGML_ID: u32 = 18;
    const NAME: &'static str = "IQ3_XXS";
    const LEN: usize = 256;
    const RUN: usize = 32;
    const BITS: u32 = 7;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let d = H::f32(self.d);
        for (i, signs) in self.signs.iter().enumerate() {
            let s = d * (0.5 + f32::from(signs[3] >> 4)) * 0.5;
            (scale[i], min[i]) = (s, -62.0 * s);
        }
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for ((points, signs), c) in self.qs.iter().zip(self.signs).zip(codes.chunks_exact_mut(32)) {
            let signs = u32::from_le_bytes(signs);
            for (i, c) in c.chunks_exact_mut(4).enumerate() {
                let magnitudes = four(grids::IQ3_XXS[usize::from(points[i])], &LEVELS);
                grids::put(c, &magnitudes, even_signs(signs >> (i / 2 * 7)) >> (i % 2 * 4), 62);
            }
        }
    }
}

/// The magnitudes.
const LEVELS: [u8; 8] = [4, 12, 20, 28, 36, 44, 52, 62];
