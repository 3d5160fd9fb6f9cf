//! Q6_K: 256 numbers in 16 runs of 16, each `d · scale · (q - 32)`.

use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q6_K: 256 numbers in 16 runs of 16, each `d · scale · (q - 32)`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low nibbles.
    pub ql: [u8; 128],
    /// High two bits.
    pub qh: [u8; 64],
    /// Scales of the runs.
    pub scales: [i8; 16],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ6K>() == 210);

impl Block for BlockQ6K {
    const GGML_ID: u32 = 14;
    const NAME: &'static str = "Q6_K";
    const LEN: usize = 256;
    const RUN: usize = 16;
    const BITS: u32 = 6;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let d = H::f32(self.d);
        for (i, s) in self.scales.into_iter().enumerate() {
            (scale[i], min[i]) = (d * f32::from(s), -32.0 * d * f32::from(s));
        }
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (half, c) in codes.chunks_exact_mut(128).enumerate() {
            let (ql, qh) = (&self.ql[64 * half..][..64], &self.qh[32 * half..][..32]);
            for l in 0..32 {
                let (lo, hi, h) = (ql[l], ql[l + 32], qh[l]);
                c[l] = lo & 15 | (h & 3) << 4;
                c[l + 32] = hi & 15 | (h >> 2 & 3) << 4;
                c[l + 64] = lo >> 4 | (h >> 4 & 3) << 4;
                c[l + 96] = hi >> 4 | (h >> 6) << 4;
            }
        }
    }
}
