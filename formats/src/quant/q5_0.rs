//! Q5_0: 32 numbers as `d · (q - 16)`; the fifth bits stand apart.

use super::search::extreme;
use super::{Block, Half, fifth_bits, nibbles, put_five};
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

const _: () = assert!(size_of::<BlockQ5_0>() == 22);

impl Block for BlockQ5_0 {
    const GGML_ID: u32 = 6;
    const NAME: &'static str = "Q5_0";
    const LEN: usize = 32;
    const RUN: usize = 32;
    const BITS: u32 = 5;
    const QUANTIZE: Option<fn(&[f32], &mut Vec<u8>)> = Some(quantize);

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        (scale[0], min[0]) = (H::f32(self.d), -16.0 * H::f32(self.d));
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        nibbles(&self.qs, codes);
        fifth_bits(self.qh, codes);
    }
}

/// Appends one block: `d = x_max / -16`, where `x_max` is the number of largest magnitude.
pub(super) fn quantize(x: &[f32], out: &mut Vec<u8>) {
    let d = extreme(x) / -16.0;
    let inv = if d == 0.0 { 0.0 } else { 1.0 / d };
    out.extend(half::f16::from_f32(d).to_le_bytes());
    put_five(out, |i| (x[i] * inv + 16.5).clamp(0.0, 31.0) as u8);
}
