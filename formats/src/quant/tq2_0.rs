//! TQ2_0: 256 numbers as `d · (q - 1)`, q of two bits.

use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// TQ2_0: 256 numbers as `d · (q - 1)`, q of two bits.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockTq2_0 {
    /// Two-bit numbers: each 32 bytes hold four runs of 32, from the low bits up.
    pub qs: [u8; 64],
    /// Scale, f16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockTq2_0>() == 66);

impl Block for BlockTq2_0 {
    const GGML_ID: u32 = 35;
    const NAME: &'static str = "TQ2_0";
    const LEN: usize = 256;
    const RUN: usize = 32;
    const BITS: u32 = 2;

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let d = H::f32(self.d);
        scale[..8].fill(d);
        min[..8].fill(-d);
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (j, c) in codes[..256].chunks_exact_mut(32).enumerate() {
            let qs = &self.qs[j / 4 * 32..][..32];
            c.iter_mut().zip(qs).for_each(|(c, q)| *c = q >> (j % 4 * 2) & 3);
        }
    }
}
