//! IQ4_XS: 256 numbers in 8 runs of 32, each `d · (scale - 32) · table[q]`, with the table of IQ4_NL.

use super::iq4_nl::TABLE;
use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// IQ4_XS: 256 numbers in 8 runs of 32, each `d · (scale - 32) · table[q]`, with the table of IQ4_NL.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockIq4Xs {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// High two bits of the eight scales.
    pub scales_h: [u8; 2],
    /// Low four bits of the scales, two in a byte.
    pub scales_l: [u8; 4],
    /// Nibbles: places in the table; each 16 bytes hold a run, low ones its first half.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockIq4Xs>() == 136);

impl Block for BlockIq4Xs {
    const GGML_ID: u32 = 23;
    const NAME: &'static str = "IQ4_XS";
    const LEN: usize = 256;
    const RUN: usize = 32;
    const BITS: u32 = 8;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let (d, high) = (H::f32(self.d), u16::from_le_bytes(self.scales_h));
        for i in 0..8 {
            let low = self.scales_l[i / 2] >> (i % 2 * 4) & 15;
            let s = d * (f32::from(low | ((high >> (2 * i) & 3) as u8) << 4) - 32.0);
            (scale[i], min[i]) = (s, -128.0 * s);
        }
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (qs, c) in self.qs.chunks_exact(16).zip(codes.chunks_exact_mut(32)) {
            for (i, q) in qs.iter().enumerate() {
                (c[i], c[i + 16]) = (TABLE[usize::from(q & 15)], TABLE[usize::from(q >> 4)]);
            }
        }
    }
}
