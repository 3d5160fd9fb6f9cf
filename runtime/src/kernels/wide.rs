//! Half-precision weights and a batch's activations as 16-bit integers.
//!
//! A processor with an instruction for pairs of 16-bit integers multiplies them twice as fast as floats. So 32
//! weights become `scale · q`, q in -8191..=8191 and `scale = max|w| / 8191`, and 32 activations the same with
//! 4095: sixteen pairs of their products add up to less than 2^31, and rounding changes no weight by more than
//! 1/16,382, and no activation by more than 1/8,190, of the largest in its run.

use super::TILE;
use crate::aligned::Aligned;
use crate::threads::Threads;
use conpet_formats::quant::{self, QuantType};
use zerocopy::{FromBytes, IntoBytes};

/// Number of values that share a scale.
pub(super) const RUN: usize = 32;

/// The largest code of a weight.
pub(super) const WEIGHT: f32 = 8191.0;
/// The largest code of an activation.
pub(super) const ACTIVATION: f32 = 4095.0;

/// Up to [`TILE`] rows of weights, interleaved so that a vector holds the same two columns of several rows.
#[derive(Debug, Default)]
pub(super) struct WidePanel {
    /// Codes `[k / 2, 32 rows, 2]`.
    pub(super) codes: Aligned<i16>,
    /// Scales `[k / 32, 32 rows]`.
    pub(super) scales: Aligned<f32>,
}

/// Rows of activations `[n, k]`; each row holds its codes, two in a word, and its scales.
#[derive(Debug, Default)]
pub(super) struct WideInput {
    k: usize,
    words: Aligned<f32>,
}

/// Some rows of a [`WideInput`].
#[derive(Debug, Clone, Copy)]
pub(super) struct WideRows<'a> {
    /// Values in a row.
    pub(super) k: usize,
    words: &'a [f32],
}

/// Words of a row.
pub(super) const fn stride(k: usize) -> usize {
    k / 2 + k / RUN
}

/// True for the half-precision types, which are rounded so.
pub(super) fn is_half(ty: QuantType) -> bool {
    matches!(ty, QuantType::F16 | QuantType::BF16)
}

impl WidePanel {
    /// Makes room for rows of `k` values.
    pub(super) fn reserve(&mut self, k: usize) {
        self.codes.reserve(k * TILE);
        self.scales.reserve(k / RUN * TILE);
    }

    /// Unpacks `rows` rows of half-precision numbers, in plain loops; rows that are missing become zeros.
    pub(super) fn unpack(&mut self, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        self.reserve(k);
        let (mut x, mut codes) = ([0.0; RUN], [0; RUN]);
        for run in 0..k / RUN {
            for r in 0..TILE {
                x.fill(0.0);
                if r < rows {
                    let at = 2 * (r * k + run * RUN);
                    quant::dequantize(ty, &bytes[at..at + 2 * RUN], &mut x);
                }
                self.scales[run * TILE + r] = round(&x, WEIGHT, &mut codes);
                for (i, pair) in codes.as_chunks::<2>().0.iter().enumerate() {
                    let at = ((run * RUN / 2 + i) * TILE + r) * 2;
                    self.codes[at..at + 2].copy_from_slice(pair);
                }
            }
        }
    }

    /// The specification of a product: `out [n, 32] = x · panelᵀ`.
    pub(super) fn product(&self, x: WideRows<'_>, out: &mut [f32]) {
        for (t, out) in out.chunks_exact_mut(TILE).enumerate() {
            let (codes, scales) = x.row(t);
            for (r, o) in out.iter_mut().enumerate() {
                let run = |run: usize| {
                    let product =
                        |i: usize| i64::from(self.codes[(i / 2 * TILE + r) * 2 + i % 2]) * i64::from(codes[i]);
                    let dot: i64 = (run * RUN..(run + 1) * RUN).map(product).sum();
                    f64::from(self.scales[run * TILE + r]) * f64::from(scales[run]) * dot as f64
                };
                *o = (0..x.k / RUN).map(run).sum::<f64>() as f32;
            }
        }
    }
}

impl WideInput {
    /// Rounds `x [n, k]`, `k` a multiple of 32; `round` is called with 32 values and [`ACTIVATION`].
    pub(super) fn fill(
        &mut self,
        threads: &Threads,
        x: &[f32],
        n: usize,
        round: impl Fn(&[f32; RUN], f32, &mut [i16; RUN]) -> f32 + Sync,
    ) -> WideRows<'_> {
        let k = x.len() / n;
        assert!(k.is_multiple_of(RUN), "rows of {k} numbers are not runs of {RUN}");
        self.k = k;
        self.words.reserve(n * stride(k));
        let words = &mut self.words[..n * stride(k)];
        threads.split_mut(words, stride(k), |first, rows| {
            let n = rows.len() / stride(k);
            round_rows(&x[first * k..(first + n) * k], rows, k, ACTIVATION, &round);
        });
        WideRows { k, words }
    }
}

/// Rounds rows of `k` values, each to its words: codes, then scales.
pub(super) fn round_rows(
    x: &[f32],
    words: &mut [f32],
    k: usize,
    limit: f32,
    round: impl Fn(&[f32; RUN], f32, &mut [i16; RUN]) -> f32,
) {
    assert!(k.is_multiple_of(RUN), "rows of {k} numbers are not runs of {RUN}");
    for (row, x) in words.chunks_exact_mut(stride(k)).zip(x.chunks_exact(k)) {
        let (codes, scales) = row.split_at_mut(k / 2);
        let codes = <[i16]>::mut_from_bytes(codes.as_mut_bytes()).unwrap_or_default();
        for ((x, codes), scale) in x.as_chunks().0.iter().zip(codes.as_chunks_mut().0).zip(scales) {
            *scale = round(x, limit, codes);
        }
    }
}

impl<'a> WideRows<'a> {
    /// Number of rows.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn n(self) -> usize {
        self.words.len() / stride(self.k)
    }

    /// Words from one row to the next.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn stride(self) -> usize {
        stride(self.k)
    }

    /// Codes `[k]` and scales `[k / 32]` of row `t`.
    ///
    /// # Panics
    /// If there is no such row.
    pub(super) fn row(self, t: usize) -> (&'a [i16], &'a [f32]) {
        let (codes, scales) = self.words[t * stride(self.k)..(t + 1) * stride(self.k)].split_at(self.k / 2);
        (<[i16]>::ref_from_bytes(codes.as_bytes()).unwrap_or_default(), scales)
    }
}

/// Rounds a run to at most `limit`, ties to even; returns its scale, which is NaN if a value is not finite.
pub(super) fn round(x: &[f32; RUN], limit: f32, codes: &mut [i16; RUN]) -> f32 {
    let max = x.iter().fold(0.0f32, |m, v| if v.abs() > m { v.abs() } else { m });
    let inv = if max > 0.0 { limit / max } else { 0.0 };
    codes.iter_mut().zip(x).for_each(|(q, x)| *q = (x * inv).round_ties_even() as i16);
    // `x · 0` is NaN where x is not finite, and must not be rounded away.
    max / limit + x.iter().map(|x| x * 0.0).sum::<f32>()
}
