//! IQ2_XXS: 256 numbers in 8 runs of 32, each four points of eight magnitudes with signs.

use super::grids::{self, MAX_8, eight, even_signs};
use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// IQ2_XXS: 256 numbers in 8 runs of 32, each four points of eight magnitudes with signs.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIq2Xxs {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Of each run: four points, then 28 bits of signs and four of scale.
    pub qs: [[u8; 8]; 8],
}

const _: () = assert!(size_of::<BlockIq2Xxs>() == 66);

impl Block for BlockIq2Xxs {
    const GGML_ID: u32 = 16;
    const NAME: &'static str = "IQ2_XXS";
    const LEN: usize = 256;
    const RUN: usize = 32;
    const BITS: u32 = 7;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let d = H::f32(self.d);
        for (i, run) in self.qs.iter().enumerate() {
            let s = d * (0.5 + f32::from(run[7] >> 4)) * 0.25;
            (scale[i], min[i]) = (s, -f32::from(MAX_8) * s);
        }
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (run, c) in self.qs.iter().zip(codes.chunks_exact_mut(32)) {
            let signs = u32::from_le_bytes([run[4], run[5], run[6], run[7]]);
            for (i, c) in c.chunks_exact_mut(8).enumerate() {
                let point = grids::IQ2_XXS[usize::from(run[i])];
                grids::put(c, &eight(point), even_signs(signs >> (7 * i)), MAX_8);
            }
        }
    }
}
