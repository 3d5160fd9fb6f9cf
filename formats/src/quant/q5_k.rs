//! Q5_K: as Q4_K with a fifth bit for each number.

use super::q4_k::{put_nibbles, put_runs, scales_mins};
use super::search::Affine;
use super::{Block, Half};
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

/// Q5_K: as Q4_K with a fifth bit for each number.
#[derive(Debug, Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlockQ5K {
    /// Scale of the scales, f16.
    pub d: [u8; 2],
    /// Scale of the minima, f16.
    pub dmin: [u8; 2],
    /// Eight 6-bit scales and minima, packed.
    pub scales: [u8; 12],
    /// Fifth bits: bit r of byte i belongs to number i of run r.
    pub qh: [u8; 32],
    /// Low nibbles: each 32 bytes hold two runs.
    pub qs: [u8; 128],
}

const _: () = assert!(size_of::<BlockQ5K>() == 176);

impl Block for BlockQ5K {
    const GGML_ID: u32 = 13;
    const NAME: &'static str = "Q5_K";
    const LEN: usize = 256;
    const RUN: usize = 32;
    const BITS: u32 = 5;
    const QUANTIZE: Option<fn(&[f32], &mut Vec<u8>)> = Some(quantize);

    #[inline(always)]
    fn scales<H: Half>(&self, scale: &mut [f32], min: &mut [f32]) {
        scales_mins::<H>((self.d, self.dmin), &self.scales, scale, min);
    }

    #[inline(always)]
    fn codes(&self, codes: &mut [u8]) {
        for (j, (q, c)) in self.qs.chunks_exact(32).zip(codes.chunks_exact_mut(64)).enumerate() {
            for (i, (q, h)) in q.iter().zip(self.qh).enumerate() {
                c[i] = q & 15 | (h >> (2 * j) & 1) << 4;
                c[i + 32] = q >> 4 | (h >> (2 * j + 1) & 1) << 4;
            }
        }
    }
}

/// Appends one block.
pub(super) fn quantize(x: &[f32], out: &mut Vec<u8>) {
    let codes = put_runs(x, &Affine { max: 31, from: -0.5, tries: 15, absolute: false }, out);
    out.extend((0..32).map(|i| (0..8).fold(0, |byte, r| byte | (codes[32 * r + i] >> 4) << r)));
    put_nibbles(out, &codes);
}
