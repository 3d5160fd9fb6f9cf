//! Q4_0: 32 numbers as `d · (q - 8)`; low nibbles hold the first 16.

use super::{Block, Half, nibbles};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q4_0: 32 numbers as `d · (q - 8)`; low nibbles hold the first 16.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// Nibbles.
    pub qs: [u8; 16],
}

const _: () = assert!(size_of::<BlockQ4_0>() == 18);

impl Block for BlockQ4_0 {
    const GGML_ID: u32 = 2;
    const NAME: &'static str = "Q4_0";
    const LEN: usize = 32;
    const RUN: usize = 32;
    const BITS: u32 = 4;
    const QUANTIZE: Option<fn(&[f32], &mut Vec<u8>)> = Some(quantize);

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        (scale[0], min[0]) = (H::f32(self.d), -8.0 * H::f32(self.d));
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        nibbles(&self.qs, codes);
    }
}

/// Appends one block: `d = x_max / -8`, where `x_max` is the number of largest magnitude.
pub(super) fn quantize(x: &[f32], out: &mut Vec<u8>) {
    let max = x.iter().copied().fold(0.0f32, |m, v| if v.abs() > m.abs() { v } else { m });
    let d = max / -8.0;
    let inv = if d == 0.0 { 0.0 } else { 1.0 / d };
    out.extend(half::f16::from_f32(d).to_le_bytes());
    let nibble = |v: f32| (v * inv + 8.5).clamp(0.0, 15.0) as u8;
    out.extend((0..16).map(|i| nibble(x[i]) | nibble(x[i + 16]) << 4));
}
