//! Q2_K: 256 numbers in 16 runs of 16, each `d · scale · q - dmin · min`.

use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q2_K: 256 numbers in 16 runs of 16, each `d · scale · q - dmin · min`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ2K {
    /// Four-bit scale (low) and minimum (high) of each run.
    pub scales: [u8; 16],
    /// Two-bit numbers: each 32 bytes hold four runs of 32, from the low bits up.
    pub qs: [u8; 64],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ2K>() == 84);

impl Block for BlockQ2K {
    const GGML_ID: u32 = 10;
    const NAME: &'static str = "Q2_K";
    const LEN: usize = 256;
    const RUN: usize = 16;
    const BITS: u32 = 2;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let (d, dmin) = H::two(self.d, self.dmin);
        for (i, s) in self.scales.into_iter().enumerate() {
            (scale[i], min[i]) = (d * f32::from(s & 15), -dmin * f32::from(s >> 4));
        }
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (q, c) in self.qs.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
            for (j, c) in c.chunks_exact_mut(32).enumerate() {
                c.iter_mut().zip(q).for_each(|(c, q)| *c = q >> (2 * j) & 3);
            }
        }
    }
}
