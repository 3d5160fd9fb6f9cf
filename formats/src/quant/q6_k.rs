//! Q6_K: 256 numbers in 16 runs of 16, each `d · scale · (q - 32)`.

use super::{Block, f16};
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

const _: () = assert!(size_of::<BlockQ6K>() == super::QuantType::Q6K.block_bytes());

impl Block for BlockQ6K {
    const LEN: usize = super::QuantType::Q6K.block_len();

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let d = f16(self.d);
        for (half, o) in out.chunks_exact_mut(128).enumerate() {
            let (ql, qh) = (&self.ql[64 * half..], &self.qh[32 * half..]);
            let scale = |run: usize| d * f32::from(self.scales[8 * half + run]);
            for l in 0..32 {
                let (lo, hi, h) = (ql[l], ql[l + 32], qh[l]);
                let six = |nibble: u8, shift: u8| f32::from(nibble | (h >> shift & 3) << 4) - 32.0;
                o[l] = scale(l / 16) * six(lo & 15, 0);
                o[l + 32] = scale(l / 16 + 2) * six(hi & 15, 2);
                o[l + 64] = scale(l / 16 + 4) * six(lo >> 4, 4);
                o[l + 96] = scale(l / 16 + 6) * six(hi >> 4, 6);
            }
        }
    }
}
