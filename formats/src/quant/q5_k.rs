//! Q5_K: as Q4_K with a fifth bit for each number.

use super::q4_k::scale_min;
use super::{Block, f16};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q5_K: as Q4_K with a fifth bit for each number.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ5K {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// Eight 6-bit scales and minima, packed; see [`scale_min`].
    pub scales: [u8; 12],
    /// Fifth bits: bit r of byte i belongs to number i of run r.
    pub qh: [u8; 32],
    /// Low nibbles: each 32 bytes hold two runs.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ5K>() == super::QuantType::Q5K.block_bytes());

impl Block for BlockQ5K {
    const LEN: usize = super::QuantType::Q5K.block_len();

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let (d, dmin) = (f16(self.d), f16(self.dmin));
        for (j, (q, o)) in self.qs.chunks_exact(32).zip(out.chunks_exact_mut(64)).enumerate() {
            let ((s0, m0), (s1, m1)) = (scale_min(&self.scales, 2 * j), scale_min(&self.scales, 2 * j + 1));
            for (i, (q, h)) in q.iter().zip(self.qh).enumerate() {
                let (h0, h1) = (h >> (2 * j) & 1, h >> (2 * j + 1) & 1);
                o[i] = d * s0 * f32::from(q & 15 | h0 << 4) - dmin * m0;
                o[i + 32] = d * s1 * f32::from(q >> 4 | h1 << 4) - dmin * m1;
            }
        }
    }
}
