//! Q3_K: 256 numbers in 16 runs of 16, each `d · (scale - 32) · (q - 4)`.

use super::search::{extreme, nearest, symmetric_by_code};
use super::{Block, Half, put_two};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q3_K: 256 numbers in 16 runs of 16, each `d · (scale - 32) · (q - 4)`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ3K {
    /// Third bits: bit r of byte i belongs to number i of the r-th 32.
    pub hmask: [u8; 32],
    /// Low two bits: each 32 bytes hold four runs of 32, from the low bits up.
    pub qs: [u8; 64],
    /// Sixteen 6-bit scales: eight bytes of low nibbles, four of high bit pairs.
    pub scales: [u8; 12],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ3K>() == 110);

impl Block for BlockQ3K {
    const GGML_ID: u32 = 11;
    const NAME: &'static str = "Q3_K";
    const LEN: usize = 256;
    const RUN: usize = 16;
    const BITS: u32 = 3;
    const QUANTIZE: Option<fn(&[f32], &mut Vec<u8>)> = Some(quantize);

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let d = H::f32(self.d);
        for i in 0..16 {
            let low = self.scales[i % 8] >> (i / 8 * 4) & 15;
            let high = self.scales[8 + i % 4] >> (i / 4 * 2) & 3;
            let s = d * (f32::from(low | high << 4) - 32.0);
            (scale[i], min[i]) = (s, -4.0 * s);
        }
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (half, (q, c)) in self.qs.chunks_exact(32).zip(codes.chunks_exact_mut(128)).enumerate() {
            for (j, c) in c.chunks_exact_mut(32).enumerate() {
                for (i, c) in c.iter_mut().enumerate() {
                    *c = q[i] >> (2 * j) & 3 | (self.hmask[i] >> (4 * half + j) & 1) << 2;
                }
            }
        }
    }
}

/// Appends one block. The scale of each run is found by trying, then written in six bits.
pub(super) fn quantize(x: &[f32], out: &mut Vec<u8>) {
    let (mut codes, mut scales) = ([0u8; 256], [0f32; 16]);
    for (j, (run, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        scales[j] = symmetric_by_code(run, 4, codes);
    }
    let max = extreme(&scales);
    let inverse = -32.0 / max;
    let d = half::f16::from_f32(if max == 0.0 { 0.0 } else { 1.0 / inverse });
    let six = scales.map(|s| if max == 0.0 { 0 } else { (nearest(inverse * s).clamp(-32, 31) + 32) as u8 });
    for (j, (run, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let scale = d.to_f32() * (f32::from(six[j]) - 32.0);
        if scale != 0.0 {
            codes.iter_mut().zip(run).for_each(|(c, v)| *c = (nearest(v / scale).clamp(-4, 3) + 4) as u8);
        }
    }
    // Bit r of byte i is the high bit of number i of run r of 32.
    out.extend((0..32).map(|i| (0..8).fold(0, |byte, r| byte | (codes[32 * r + i] >> 2) << r)));
    put_two(out, &codes.map(|c| c & 3));
    out.extend((0..8).map(|j| six[j] & 15 | (six[j + 8] & 15) << 4));
    out.extend((0..4).map(|j| (0..4).fold(0, |byte, k| byte | (six[j + 4 * k] >> 4) << (2 * k))));
    out.extend(d.to_le_bytes());
}
