//! Q6_K: 256 numbers in 16 runs of 16, each `d · scale · (q - 32)`.

use super::search::{TINY, extreme, nearest, symmetric};
use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q6_K: 256 numbers in 16 runs of 16, each `d · scale · (q - 32)`.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ6K {
    /// Low nibbles.
    pub ql: [u8; 128],
    /// High two bits.
    pub qh: [u8; 64],
    /// Scales of the runs.
    pub scales: [i8; 16],
    /// Scale of the scales, f16.
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ6K>() == 210);

impl Block for BlockQ6K {
    const GGML_ID: u32 = 14;
    const NAME: &'static str = "Q6_K";
    const LEN: usize = 256;
    const RUN: usize = 16;
    const BITS: u32 = 6;
    const QUANTIZE: Option<fn(&[f32], &mut Vec<u8>)> = Some(quantize);

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        let d = H::f32(self.d);
        for (i, s) in self.scales.into_iter().enumerate() {
            (scale[i], min[i]) = (d * f32::from(s), -32.0 * d * f32::from(s));
        }
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (half, c) in codes.chunks_exact_mut(128).enumerate() {
            let (ql, qh) = (&self.ql[64 * half..][..64], &self.qh[32 * half..][..32]);
            for l in 0..32 {
                let (lo, hi, h) = (ql[l], ql[l + 32], qh[l]);
                c[l] = lo & 15 | (h & 3) << 4;
                c[l + 32] = hi & 15 | (h >> 2 & 3) << 4;
                c[l + 64] = lo >> 4 | (h >> 4 & 3) << 4;
                c[l + 96] = hi >> 4 | (h >> 6) << 4;
            }
        }
    }
}

/// Appends one block. The scale of each run is found by trying, then written in eight bits.
pub(super) fn quantize(x: &[f32], out: &mut Vec<u8>) {
    let (mut codes, mut scales) = ([0u8; 256], [0f32; 16]);
    for (j, (run, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        scales[j] = symmetric(run, 32, codes);
    }
    let max = extreme(&scales);
    if max.abs() < TINY {
        return out.extend([0; size_of::<BlockQ6K>()]);
    }
    let inverse = -128.0 / max;
    let d = half::f16::from_f32(1.0 / inverse);
    let eight = scales.map(|s| nearest(inverse * s).min(127) as i8);
    for (j, (run, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
        let scale = d.to_f32() * f32::from(eight[j]);
        if scale != 0.0 {
            codes.iter_mut().zip(run).for_each(|(c, v)| *c = (nearest(v / scale).clamp(-32, 31) + 32) as u8);
        }
    }
    for half in codes.chunks_exact(128) {
        out.extend((0..64).map(|l| half[l] & 15 | half[l + 64] << 4));
    }
    for half in codes.chunks_exact(128) {
        out.extend((0..32).map(|l| (0..4).fold(0, |byte, k| byte | (half[l + 32 * k] >> 4) << (2 * k))));
    }
    out.extend(eight.map(|s| s as u8));
    out.extend(d.to_le_bytes());
}
