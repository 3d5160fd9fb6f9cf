//! Q2_K: 256 numbers in 16 runs of 16, each `d · scale · q - dmin · min`.

use super::search::{Affine, affine, nearest};
use super::{Block, Half, put_two};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q2_K: 256 numbers in 16 runs of 16, each `d · scale · q - dmin · min`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ2K {
    /// Four-bit scale (low) and minimum (high) of each run.
    pub scales: [u8; 16],
    /// Two-bit numbers: each 32 bytes hold four runs of 32, from the low bits up.
    pub qs: [u8; 64],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ2K>() == 84);

impl Block for BlockQ2K {
    const GGML_ID: u32 = 10;
    const NAME: &'static str = "Q2_K";
    const LEN: usize = 256;
    const RUN: usize = 16;
    const BITS: u32 = 2;
    const QUANTIZE: Option<fn(&[f32], &mut Vec<u8>)> = Some(quantize);

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let (d, dmin) = H::two(self.d, self.dmin);
        for (i, s) in self.scales.into_iter().enumerate() {
            (scale[i], min[i]) = (d * f32::from(s & 15), -dmin * f32::from(s >> 4));
        }
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (q, c) in self.qs.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
            for (j, c) in c.chunks_exact_mut(32).enumerate() {
                c.iter_mut().zip(q).for_each(|(c, q)| *c = q >> (2 * j) & 3);
            }
        }
    }
}

/// Appends one block. Scale and minimum of each run are found by trying, then written in four bits.
pub(super) fn quantize(x: &[f32], out: &mut Vec<u8>) {
    const HOW: Affine = Affine { max: 3, from: -0.5, tries: 15, absolute: true };
    let (mut codes, mut scales, mut mins) = ([0u8; 256], [0f32; 16], [0f32; 16]);
    for (j, (run, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let weights: Vec<f32> = run.iter().map(|v| v.abs()).collect();
        (scales[j], mins[j]) = affine(run, &weights, &HOW, codes);
    }
    let largest = |v: &[f32; 16]| v.iter().copied().fold(0.0f32, f32::max);
    let four = |v: &[f32; 16], max: f32| v.map(|s| if max > 0.0 { nearest(15.0 / max * s) as u8 } else { 0 });
    let (max_scale, max_min) = (largest(&scales), largest(&mins));
    let (low, high) = (four(&scales, max_scale), four(&mins, max_min));
    let (d, dmin) = (half::f16::from_f32(max_scale / 15.0), half::f16::from_f32(max_min / 15.0));
    for (j, (run, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let scale = d.to_f32() * f32::from(low[j]);
        let min = dmin.to_f32() * f32::from(high[j]);
        if scale != 0.0 {
            codes.iter_mut().zip(run).for_each(|(c, v)| *c = nearest((v + min) / scale).clamp(0, 3) as u8);
        }
    }
    out.extend((0..16).map(|j| low[j] | high[j] << 4));
    put_two(out, &codes);
    out.extend(d.to_le_bytes());
    out.extend(dmin.to_le_bytes());
}
