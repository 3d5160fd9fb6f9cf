//! Q8_0: 32 numbers as `d · q`, q in -127..=127.

use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q8_0: 32 numbers as `d · q`, q in -127..=127.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale, f16.
    pub d: [u8; 2],
    /// The numbers.
    pub qs: [i8; 32],
}

const _: () = assert!(size_of::<BlockQ8_0>() == 34);

impl Block for BlockQ8_0 {
    const GGML_ID: u32 = 8;
    const NAME: &'static str = "Q8_0";
    const LEN: usize = 32;
    const RUN: usize = 32;
    const BITS: u32 = 8;
    const QUANTIZE: Option<fn(&[f32], &mut Vec<u8>)> = Some(quantize);

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        (scale[0], min[0]) = (H::f32(self.d), -128.0 * H::f32(self.d));
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        codes.iter_mut().zip(self.qs).for_each(|(c, q)| *c = q as u8 ^ 0x80);
    }
}

/// Appends one block: `d = max|x| / 127`, round to nearest. A number that is not finite makes the
/// whole block not a number, rather than vanish.
pub fn quantize(x: &[f32], out: &mut Vec<u8>) {
    let max = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let d = max / 127.0 + x.iter().map(|v| v * 0.0).sum::<f32>();
    let inv = if d > 0.0 { 1.0 / d } else { 0.0 };
    out.extend(half::f16::from_f32(d).to_le_bytes());
    out.extend(x.iter().map(|v| (v * inv).round() as i8 as u8));
}
