//! Q4_K: 256 numbers in 8 runs of 32, each `d · scale · q - dmin · min`.

use super::search::{Affine, affine, nearest};
use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q4_K: 256 numbers in 8 runs of 32, each `d · scale · q - dmin · min`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ4K {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// Eight 6-bit scales and minima, packed.
    pub scales: [u8; 12],
    /// Nibbles: each 32 bytes hold two runs.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ4K>() == 144);

impl Block for BlockQ4K {
    const GGML_ID: u32 = 12;
    const NAME: &'static str = "Q4_K";
    const LEN: usize = 256;
    const RUN: usize = 32;
    const BITS: u32 = 4;
    const QUANTIZE: Option<fn(&[f32], &mut Vec<u8>)> = Some(quantize);

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        scales_mins::<H>((self.d, self.dmin), &self.scales, scale, min);
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (q, c) in self.qs.chunks_exact(32).zip(codes.chunks_exact_mut(64)) {
            for (i, q) in q.iter().enumerate() {
                (c[i], c[i + 32]) = (q & 15, q >> 4);
            }
        }
    }
}

/// The scales and minima of the eight runs; Q5_K packs them alike.
#[inline(always)]
pub(super) fn scales_mins<H: Half>((d, dmin): ([u8; 2], [u8; 2]), s: &[u8; 12], scale: &mut [f32], min: &mut [f32]) {
    let (d, dmin) = H::two(d, dmin);
    for j in 0..4 {
        scale[j] = d * f32::from(s[j] & 63);
        min[j] = -dmin * f32::from(s[j + 4] & 63);
        scale[j + 4] = d * f32::from(s[j + 8] & 15 | s[j] >> 6 << 4);
        min[j + 4] = -dmin * f32::from(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
    }
}

/// Appends one block.
pub(super) fn quantize(x: &[f32], out: &mut Vec<u8>) {
    let codes = put_runs(x, &Affine { max: 15, from: -1.0, tries: 20, absolute: false }, out);
    put_nibbles(out, &codes);
}

/// Writes the scales and minima of eight runs, found by trying, and returns the codes; Q5_K has the same.
pub(super) fn put_runs(x: &[f32], how: &Affine, out: &mut Vec<u8>) -> [u8; 256] {
    let (mut codes, mut scales, mut mins) = ([0u8; 256], [0f32; 8], [0f32; 8]);
    for (j, (run, codes)) in x.chunks_exact(32).zip(codes.chunks_exact_mut(32)).enumerate() {
        let size = (run.iter().fold(0.0, |sum, v| sum + v * v) / 32.0).sqrt();
        let weights: Vec<f32> = run.iter().map(|v| size + v.abs()).collect();
        (scales[j], mins[j]) = affine(run, &weights, how, codes);
    }
    let largest = |v: &[f32; 8]| v.iter().copied().fold(0.0f32, f32::max);
    let six = |v: &[f32; 8], max: f32| {
        let inverse = if max > 0.0 { 63.0 / max } else { 0.0 };
        v.map(|s| (nearest(inverse * s) as u8).min(63))
    };
    let (max_scale, max_min) = (largest(&scales), largest(&mins));
    let (s, m) = (six(&scales, max_scale), six(&mins, max_min));
    let (d, dmin) = (half::f16::from_f32(max_scale / 63.0), half::f16::from_f32(max_min / 63.0));
    for (j, (run, codes)) in x.chunks_exact(32).zip(codes.chunks_exact_mut(32)).enumerate() {
        let (scale, min) = (d.to_f32() * f32::from(s[j]), dmin.to_f32() * f32::from(m[j]));
        if scale != 0.0 {
            let top = i32::from(how.max);
            codes.iter_mut().zip(run).for_each(|(c, v)| *c = nearest((v + min) / scale).clamp(0, top) as u8);
        }
    }
    out.extend(d.to_le_bytes());
    out.extend(dmin.to_le_bytes());
    out.extend((0..4).map(|j| s[j] | s[j + 4] >> 4 << 6));
    out.extend((0..4).map(|j| m[j] | m[j + 4] >> 4 << 6));
    out.extend((4..8).map(|j| s[j] & 15 | m[j] << 4));
    codes
}

/// Low nibbles of two runs in each 32 bytes.
pub(super) fn put_nibbles(out: &mut Vec<u8>, codes: &[u8; 256]) {
    for two in codes.chunks_exact(64) {
        out.extend((0..32).map(|i| two[i] & 15 | two[i + 32] << 4));
    }
}
