//! Q5_1: 32 numbers as `d · q + m`; the fifth bits stand apart.

use super::{Block, Half, fifth_bits, nibbles, put_five};
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

const _: () = assert!(size_of::<BlockQ5_1>() == 24);

impl Block for BlockQ5_1 {
    const GGML_ID: u32 = 7;
    const NAME: &'static str = "Q5_1";
    const LEN: usize = 32;
    const RUN: usize = 32;
    const BITS: u32 = 5;
    const QUANTIZE: Option<fn(&[f32], &mut Vec<u8>)> = Some(quantize);

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        (scale[0], min[0]) = H::two(self.d, self.m);
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        nibbles(&self.qs, codes);
        fifth_bits(self.qh, codes);
    }
}

/// Appends one block: `m = min x`, `d = (max - min) / 31`.
pub(super) fn quantize(x: &[f32], out: &mut Vec<u8>) {
    let min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let d = (max - min) / 31.0;
    let inv = if d > 0.0 { 1.0 / d } else { 0.0 };
    out.extend(half::f16::from_f32(d).to_le_bytes());
    out.extend(half::f16::from_f32(min).to_le_bytes());
    put_five(out, |i| ((x[i] - min) * inv + 0.5).clamp(0.0, 31.0) as u8);
}
