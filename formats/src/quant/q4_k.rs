//! Q4_K: 256 numbers in 8 runs of 32, each `d · scale · q - dmin · min`.

use super::{Block, f16};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q4_K: 256 numbers in 8 runs of 32, each `d · scale · q - dmin · min`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// Eight 6-bit scales and minima, packed; see [`scale_min`].
    pub scales: [u8; 12],
    /// Nibbles: each 32 bytes hold two runs.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ4K>() == super::QuantType::Q4K.block_bytes());

impl Block for BlockQ4K {
    const LEN: usize = super::QuantType::Q4K.block_len();

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let (d, dmin) = (f16(self.d), f16(self.dmin));
        for (j, (q, o)) in self.qs.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
            let ((s0, m0), (s1, m1)) = (scale_min(&self.scales, 2 * j), scale_min(&self.scales, 2 * j + 1));
            for (i, q) in q.iter().enumerate() {
                o[i] = d * s0 * f32::from(q & 15) - dmin * m0;
                o[i + 32] = d * s1 * f32::from(q >> 4) - dmin * m1;
            }
        }
    }
}

/// The scale and minimum of run `j` (0..8), as small integers.
#[inline(always)]
pub fn scale_min(s: &[u8; 12], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (s[j + 4] & 15 | s[j - 4] >> 6 << 4, s[j + 4] >> 4 | s[j] >> 6 << 4)
    };
    (f32::from(scale), f32::from(min))
}
