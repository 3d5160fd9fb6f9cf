//! Q5_0: 32 numbers as `d · (q - 16)`; the fifth bits stand apart.

use super::{Block, f16};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q5_0: 32 numbers as `d · (q - 16)`; the fifth bits stand apart.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Fifth bits, number i at bit i.
    pub qh: [u8; 4],
    /// Low nibbles.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ5_0>() == super::QuantType::Q5_0.block_bytes());

impl Block for BlockQ5_0 {
    const LEN: usize = super::QuantType::Q5_0.block_len();

    #[inline(always)]
    fn dequantize(&self, out: &mut [f32]) {
        let (d, qh) = (f16(self.d), u32::from_le_bytes(self.qh));
        for (i, q) in self.qs.into_iter().enumerate() {
            let (h0, h1) = ((qh >> i & 1) as u8, (qh >> (i + 16) & 1) as u8);
            out[i] = d * (f32::from(q & 15 | h0 << 4) - 16.0);
            out[i + 16] = d * (f32::from(q >> 4 | h1 << 4) - 16.0);
        }
    }
}
