//! Q5_1: 32 numbers as `d · q + m`; the fifth bits stand apart.

use super::{Block, f16};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q5_1: 32 numbers as `d · q + m`; the fifth bits stand apart.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Minimum, f16.
    pub m: [u8; 2],
    /// Fifth bits, number i at bit i.
    pub qh: [u8; 4],
    /// Low nibbles.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_1>() == super::QuantType::Q5_1.block_bytes());

impl Block for BlockQ5_1 {
    const LEN: usize = super::QuantType::Q5_1.block_len();

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let (d, m, qh) = (f16(self.d), f16(self.m), u32::from_le_bytes(self.qh));
        for (i, q) in self.qs.into_iter().enumerate() {
            let (h0, h1) = ((qh >> i & 1) as u8, (qh >> (i + 16) & 1) as u8);
            out[i] = d * f32::from(q & 15 | h0 << 4) + m;
            out[i + 16] = d * f32::from(q >> 4 | h1 << 4) + m;
        }
    }
}
