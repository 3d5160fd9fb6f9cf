//! Q4_K: 256 numbers in 8 runs of 32, each `d · scale · q - dmin · min`.

use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q4_K: 256 numbers in 8 runs of 32, each `d · scale · q - dmin · min`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// Eight 6-bit scales and minima, packed.
    pub scales: [u8; 12],
    /// Nibbles: each 32 bytes hold two runs.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ4K>() == 144);

impl Block for BlockQ4K {
    const GGML_ID: u32 = 12;
    const NAME: &'static str = "Q4_K";
    const LEN: usize = 256;
    const RUN: usize = 32;
    const BITS: u32 = 4;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        scales_mins::<H>((self.d, self.dmin), &self.scales, scale, min);
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (q, c) in self.qs.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
            for (i, q) in q.iter().enumerate() {
                (c[i], c[i + 32]) = (q & 15, q >> 4);
            }
        }
    }
}

/// The scales and minima of the eight runs; Q5_K packs them alike.
#[inline(always)]
pub(super) fn scales_mins<H: Half>((d, dmin): ([u8; 2], [u8; 2]), s: &[u8; 12], scale: &mut [f32], min: &mut [f32]) {
    let (d, dmin) = H::two(d, dmin);
    for j in 0..4 {
        scale[j] = d * f32::from(s[j] & 63);
        min[j] = -dmin * f32::from(s[j + 4] & 63);
        scale[j + 4] = d * f32::from(s[j + 8] & 15 | s[j] >> 6 << 4);
        min[j + 4] = -dmin * f32::from(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
    }
}
