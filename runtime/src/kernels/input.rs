//! Activations as 8-bit integers, for products with quantized weights.
//!
//! A run of 32 values becomes `scale · q`, with q in -127..=127 and `scale = max|x| / 127`: the rounding that
//! llama.cpp calls Q8_0, with the scale kept in `f32`. Weights are `scale · code + min`, so a product also
//! needs the sums of the activations, which are stored beside them.

use crate::aligned::Aligned;
use crate::threads::Threads;
use zerocopy::IntoBytes;

/// Number of values that share a scale.
const RUN: usize = 32;

/// The largest code.
pub(super) const LIMIT: f32 = 127.0;

/// Rows of activations `[n, k]`, `k` a multiple of 32.
///
/// All rows lie in one buffer of `f32` words. Each row holds its codes (four in a word), its scales, and its
/// sums by 32 and by 16, so that rows can be filled in parallel.
#[derive(Debug, Default)]
pub(super) struct Input {
    k: usize,
    words: Aligned<f32>,
}

/// Some rows of an [`Input`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    /// Values in a row.
    pub(super) k: usize,
    words: &'a [f32],
}

/// The parts of one row.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// Codes `[k]`, two's complement.
    pub(super) codes: &'a [u8],
    /// Scales `[k / 32]`.
    pub(super) scales: &'a [f32],
    /// `scale · Σ q` of each 32 values.
    pub(super) sums32: &'a [f32],
    /// `scale · Σ q` of each 16 values.
    pub(super) sums16: &'a [f32],
}

/// One row, to be filled.
pub(super) struct RowMut<'a> {
    pub(super) codes: &'a mut [u8],
    pub(super) scales: &'a mut [f32],
    pub(super) sums32: &'a mut [f32],
    pub(super) sums16: &'a mut [f32],
}

/// Words of a row: `k` bytes of codes, and for each 32 values a scale and three sums.
const fn stride(k: usize) -> usize {
    k / 4 + k / 32 * 4
}

impl Input {
    /// Fills it with the rows of `x [n, k]`; `quantize` rounds one row.
    pub(super) fn fill(
        &mut self,
        threads: &Threads,
        x: &[f32],
        n: usize,
        quantize: impl Fn(&[f32], RowMut<'_>) + Sync,
    ) {
        let k = x.len() / n;
        assert!(k.is_multiple_of(RUN), "rows of {k} numbers are not runs of {RUN}");
        self.k = k;
        let len = n * stride(k);
        self.words.reserve(len);
        let fill = |first: usize, rows: &mut [f32]| {
            for (row, x) in rows.chunks_exact_mut(stride(k)).zip(x[first * k..].chunks_exact(k)) {
                let (codes, rest) = row.split_at_mut(k / 4);
                let (scales, rest) = rest.split_at_mut(k / 32);
                let (sums32, sums16) = rest.split_at_mut(k / 32);
                quantize(x, RowMut { codes: codes.as_mut_bytes(), scales, sums32, sums16 });
            }
        };
        if x.len() < 1 << 14 {
            fill(0, &mut self.words[..len]);
        } else {
            threads.split_mut(&mut self.words[..len], stride(k), fill);
        }
    }

    /// The `n` rows of the last [`Input::fill`].
    pub(super) fn rows(&self, n: usize) -> Rows<'_> {
        Rows { k: self.k, words: &self.words[..n * stride(self.k)] }
    }
}

impl<'a> Rows<'a> {
    /// Number of rows.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(super) fn n(self) -> usize {
        self.words.len() / stride(self.k)
    }

    /// Words from one row to the next.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn stride(self) -> usize {
        stride(self.k)
    }

    /// Row `t`.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub(super) fn row(self, t: usize) -> Row<'a> {
        let (k, words) = (self.k, &self.words[t * stride(self.k)..(t + 1) * stride(self.k)]);
        let (codes, rest) = words.split_at(k / 4);
        let (scales, rest) = rest.split_at(k / 32);
        let (sums32, sums16) = rest.split_at(k / 32);
        Row { codes: codes.as_bytes(), scales, sums32, sums16 }
    }
}

impl<'a> Row<'a> {
    /// The sums that go with weights in runs of `run`.
    #[inline(always)]
    pub(super) fn sums(self, run: usize) -> &'a [f32] {
        if run == 16 { self.sums16 } else { self.sums32 }
    }
}

/// Rounds one row. Inlined into the vector sets' functions, where its loops become vector code; the
/// result is the same everywhere.
#[inline(always)]
pub(super) fn quantize(x: &[f32], row: RowMut<'_>) {
    let runs = x.chunks_exact(RUN).zip(row.codes.chunks_exact_mut(RUN)).zip(row.scales);
    for (((x, codes), scale), (s32, s16)) in runs.zip(row.sums32.iter_mut().zip(row.sums16.chunks_exact_mut(2))) {
        // Sixteen running maxima let the compiler use vectors; `x · 0` is NaN where x is not finite, and must
        // not be rounded away.
        let (mut most, mut poison) = ([0.0f32; 16], [0.0f32; 16]);
        for half in x.chunks_exact(16) {
            for j in 0..16 {
                most[j] = if half[j].abs() > most[j] { half[j].abs() } else { most[j] };
                poison[j] += half[j] * 0.0;
            }
        }
        let max = most.into_iter().fold(0.0f32, |m, v| if v > m { v } else { m });
        let inv = if max > 0.0 { 127.0 / max } else { 0.0 };
        let d = max / 127.0 + poison.into_iter().sum::<f32>();
        let mut sums = [0i32; 2];
        for ((x, codes), sum) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).zip(&mut sums) {
            for j in 0..16 {
                // Adding 1.5 · 2^23 rounds to the nearest integer, ties to even, into the low bits.
                let q = (x[j] * inv + 12_582_912.0).to_bits() as u8;
                codes[j] = q;
                *sum += i32::from(q as i8);
            }
        }
        *scale = d;
        (s16[0], s16[1]) = (d * sums[0] as f32, d * sums[1] as f32);
        *s32 = d * (sums[0] + sums[1]) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_stays_within_half_a_step_and_nothing_hides() {
        let mut x: Vec<f32> = (0..192).map(|i| (i as f32 * 0.61).sin() * (i / 32 % 3) as f32 * 100.0).collect();
        let (mut input, threads) = (Input::default(), Threads::new(2));
        input.fill(&threads, &x, 2, quantize);
        for t in 0..2 {
            let r = input.rows(2).row(t);
            let code = |i: usize| r.codes[i] as i8;
            for (i, v) in x[96 * t..96 * (t + 1)].iter().enumerate() {
                let d = r.scales[i / 32];
                assert!((v - d * f32::from(code(i))).abs() <= 0.5001 * d, "{i}: {v}");
            }
            let sum = |a: usize, b: usize| (a..b).map(|i| i32::from(code(i))).sum::<i32>() as f32;
            assert_eq!((r.scales[0], r.sums32[0]), (0.0, 0.0));
            assert_eq!(r.sums16[3], r.scales[1] * sum(48, 64));
            assert_eq!(r.sums(32)[2], r.scales[2] * sum(64, 96));
        }
        for bad in [f32::NAN, f32::INFINITY] {
            x[40] = bad;
            input.fill(&threads, &x, 2, quantize);
            let r = input.rows(2).row(0);
            assert!(r.scales[1].is_nan() && r.sums32[1].is_nan() && r.scales[2] > 0.0);
        }
    }
}
