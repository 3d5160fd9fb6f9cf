//! Q3_K: 256 numbers in 16 runs of 16, each `d · (scale - 32) · (q - 4)`.

use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q3_K: 256 numbers in 16 runs of 16, each `d · (scale - 32) · (q - 4)`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ3K {
    /// Third bits: bit r of byte i belongs to number i of the r-th 32.
    pub hmask: [u8; 32],
    /// Low two bits: each 32 bytes hold four runs of 32, from the low bits up.
    pub qs: [u8; 64],
    /// Sixteen 6-bit scales: eight bytes of low nibbles, four of high bit pairs.
    pub scales: [u8; 12],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ3K>() == 110);

impl Block for BlockQ3K {
    const GGML_ID: u32 = 11;
    const NAME: &'static str = "Q3_K";
    const LEN: usize = 256;
    const RUN: usize = 16;
    const BITS: u32 = 3;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let d = H::f32(self.d);
        for i in 0..16 {
            let low = self.scales[i % 8] >> (i / 8 * 4) & 15;
            let high = self.scales[8 + i % 4] >> (i / 4 * 2) & 3;
            let s = d * (f32::from(low | high << 4) - 32.0);
            (scale[i], min[i]) = (s, -4.0 * s);
        }
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (half, (q, c)) in self.qs.chunks_exact(32).zip(codes.chunks_exact_mut(128)).enumerate() {
            for (j, c) in c.chunks_exact_mut(32).enumerate() {
                for (i, c) in c.iter_mut().enumerate() {
                    *c = q[i] >> (2 * j) & 3 | (self.hmask[i] >> (4 * half + j) & 1) << 2;
                }
            }
        }
    }
}
