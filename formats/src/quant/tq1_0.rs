//! TQ1_0: 256 numbers as `d · q`, q being -1, 0 or 1, five in a byte.

use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// TQ1_0: 256 numbers as `d · q`, q being -1, 0 or 1, five in a byte.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockTq1_0 {
    /// Five digits to the base of three in each byte.
    pub qs: [u8; 48],
    /// Four in each byte.
    pub qh: [u8; 4],
    /// Scale, f16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockTq1_0>() == 54);

impl Block for BlockTq1_0 {
    const GGML_ID: u32 = 34;
    const NAME: &'static str = "TQ1_0";
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
        let (first, rest) = codes.split_at_mut(160);
        digits(&self.qs[..32], first);
        digits(&self.qs[32..], &mut rest[..80]);
        digits(&self.qh, &mut rest[80..96]);
    }
}

/// The digits of these bytes: all first ones, then all second ones, and so on. A byte is a fraction of 256 whose
/// digits to the base of three are wanted: three times it, the part above 256 is the next digit.
#[inline(always)]
fn digits(bytes: &[u8], codes: &mut [u8]) {
    let mut power = 1u8;
    for codes in codes.chunks_exact_mut(bytes.len()) {
        for (c, b) in codes.iter_mut().zip(bytes) {
            *c = ((u16::from(b.wrapping_mul(power)) * 3) >> 8) as u8;
        }
        power = power.wrapping_mul(3);
    }
}
