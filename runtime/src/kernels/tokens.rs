//! A batch's activations with sixteen tokens side by side, for products with weights as they lie in their rows.
//!
//! A vector register holds one column of eight tokens, or two columns as 16-bit integers, and a weight is
//! broadcast to all of them. So weights are neither transposed nor interleaved: floats are read where they are in
//! the map, others are decoded row by row. Only the activations are turned, once for all weights that read them.

use super::wide::{self, RUN};
use super::{Kernels, SCRATCH, dispatch};
use crate::aligned::Aligned;
use crate::threads::Threads;
use conpet_formats::quant::q8_0::BlockQ8_0;
use conpet_formats::quant::{self, QuantType};

/// Tokens of a block.
pub(super) const BLOCK: usize = 16;
/// A number of weight rows that is best multiplied together.
pub(super) const ROWS: usize = 12;
/// Weight rows that are decoded at a time: they stay in the L2 cache while they meet all tokens.
pub(super) const MANY: usize = 8 * ROWS;

/// Room for turned activations, which grows as needed.
#[derive(Debug, Default)]
pub(super) struct Turned {
    words: Aligned<f32>,
}

/// Turned activations `[n, k]`: for each sixteen tokens a block `[height, 16]`, the last one filled up with zeros.
///
/// Of floats, the height is `k`. Of 16-bit integers, it is `k / 2` words of two codes and then `k / 32` scales.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks<'a> {
    /// Tokens.
    pub(super) n: usize,
    /// Values of a token.
    pub(super) k: usize,
    height: usize,
    words: &'a [f32],
}

/// Rows of weights as 16-bit integers, as they are multiplied with turned activations.
#[derive(Debug, Default)]
pub(super) struct WideTile {
    /// Codes `[k / 32, rows, 32]`: the rows of a run lie side by side, so that an address differs by a constant.
    codes: Aligned<i16>,
    /// Scales `[k / 32, rows]`.
    scales: Aligned<f32>,
    rows: usize,
}

impl Turned {
    /// Turns `x [n, k]` as it is.
    pub(super) fn fill(&mut self, kernels: Kernels, threads: &Threads, x: &[f32], n: usize) -> Blocks<'_> {
        let k = x.len() / n;
        self.fill_by(threads, (n, k, k), |first, tokens, block| {
            kernels.transpose(&x[first * k..], k, tokens, k, block, BLOCK);
        })
    }

    /// Rounds `x [n, k]`, `k` a multiple of 32, to codes of at most `limit`, and turns them.
    pub(super) fn fill_wide(
        &mut self,
        kernels: Kernels,
        threads: &Threads,
        x: &[f32],
        n: usize,
        limit: f32,
    ) -> Blocks<'_> {
        let k = x.len() / n;
        let height = wide::stride(k);
        self.fill_by(threads, (n, k, height), |first, tokens, block| {
            SCRATCH.with_borrow_mut(|s| {
                s.tile.reserve(tokens * height);
                let rows = &mut s.tile[..tokens * height];
                let round = |x: &_, limit, codes: &mut _| dispatch!(kernels, round_wide(x, limit, codes));
                wide::round_rows(&x[first * k..(first + tokens) * k], rows, k, limit, round);
                kernels.transpose(rows, height, tokens, height, block, BLOCK);
            });
        })
    }

    /// Calls `turn(first token, tokens, block)` for each block.
    fn fill_by(
        &mut self,
        threads: &Threads,
        (n, k, height): (usize, usize, usize),
        turn: impl Fn(usize, usize, &mut [f32]) + Sync,
    ) -> Blocks<'_> {
        let len = n.div_ceil(BLOCK) * BLOCK * height;
        self.words.reserve(len);
        let words = &mut self.words[..len];
        threads.split_mut(words, BLOCK * height, |first, blocks| {
            for (i, block) in blocks.chunks_exact_mut(BLOCK * height).enumerate() {
                let first = (first + i) * BLOCK;
                let tokens = BLOCK.min(n - first);
                if tokens < BLOCK {
                    block.fill(0.0);
                }
                turn(first, tokens, block);
            }
        });
        Blocks { n, k, height, words }
    }
}

impl<'a> Blocks<'a> {
    /// Columns of a product: a token each, up to whole blocks.
    pub(super) fn pitch(self) -> usize {
        self.n.next_multiple_of(BLOCK)
    }

    /// Block `b`, `[height, 16]`.
    pub(super) fn block(self, b: usize) -> &'a [f32] {
        &self.words[b * BLOCK * self.height..(b + 1) * BLOCK * self.height]
    }

    /// The specification of a product: `c [rows, pitch] = w · xᵀ`; columns beyond the tokens are undefined.
    pub(super) fn product(self, w: &[f32], rows: usize, c: &mut [f32]) {
        for (r, c) in c.chunks_exact_mut(self.pitch()).enumerate().take(rows) {
            for (t, c) in c.iter_mut().enumerate().take(self.n) {
                let block = self.block(t / BLOCK);
                let x = |i: usize| f64::from(block[i * BLOCK + t % BLOCK]);
                *c = (0..self.k).map(|i| f64::from(w[r * self.k + i]) * x(i)).sum::<f64>() as f32;
            }
        }
    }

    /// The specification of a product of rounded numbers, as [`Blocks::product`].
    pub(super) fn product_wide(self, w: &WideTile, rows: usize, c: &mut [f32]) {
        for (r, c) in c.chunks_exact_mut(self.pitch()).enumerate().take(rows) {
            for (t, c) in c.iter_mut().enumerate().take(self.n) {
                let word = |row: usize| self.block(t / BLOCK)[row * BLOCK + t % BLOCK];
                let code = |i: usize| i64::from((word(i / 2).to_bits() >> (16 * (i % 2))) as i16);
                let run = |run: usize| {
                    let at = run * w.rows + r;
                    let w_code = |i: usize| i64::from(w.codes[at * RUN + i]);
                    let dot: i64 = (0..RUN).map(|i| w_code(i) * code(run * RUN + i)).sum();
                    f64::from(w.scales[at]) * f64::from(word(self.k / 2 + run)) * dot as f64
                };
                *c = (0..self.k / RUN).map(run).sum::<f64>() as f32;
            }
        }
    }
}

impl WideTile {
    /// Makes room for rows of `k` values, and gives it: codes and scales.
    pub(super) fn reserve(&mut self, rows: usize, k: usize) -> (&mut [i16], &mut [f32]) {
        self.rows = rows;
        self.codes.reserve(rows * k);
        self.scales.reserve(rows * k / RUN);
        (&mut self.codes[..rows * k], &mut self.scales[..rows * k / RUN])
    }

    /// Codes `[k / 32, rows, 32]`, scales `[k / 32, rows]`, and rows.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn parts(&self) -> (&[i16], &[f32], usize) {
        (&self.codes, &self.scales, self.rows)
    }

    /// Unpacks rows in plain loops: Q8_0 to its own codes and scales, half-precision numbers rounded.
    pub(super) fn unpack(&mut self, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        let (codes, scales) = self.reserve(rows, k);
        let run_bytes = bytes.len() / (rows * k / RUN);
        for (i, bytes) in bytes.chunks_exact(run_bytes).enumerate() {
            let (r, run) = (i / (k / RUN), i % (k / RUN));
            let at = run * rows + r;
            let codes = &mut codes.as_chunks_mut::<RUN>().0[at];
            if ty == QuantType::Q8_0 {
                for block in quant::blocks::<BlockQ8_0>(bytes).unwrap_or_default() {
                    codes.iter_mut().zip(block.qs).for_each(|(q, b)| *q = i16::from(b));
                    scales[at] = quant::f16(block.d);
                }
            } else {
                let mut x = [0.0; RUN];
                quant::dequantize(ty, bytes, &mut x);
                scales[at] = wide::round(&x, wide::WEIGHT, codes);
            }
        }
    }
}

/// Stores `c [rows, pitch]` turned back, `out [n, rows]` with rows `ldo` apart, in plain loops.
///
/// # Safety
/// * `rows` numbers may be written at each of `out + t · ldo`, `t` below `n`.
pub(super) unsafe fn store(c: &[f32], pitch: usize, rows: usize, n: usize, out: *mut f32, ldo: usize) {
    for t in 0..n {
        for r in 0..rows {
            // SAFETY: by this function's contract.
            unsafe { *out.add(t * ldo + r) = c[r * pitch + t] };
        }
    }
}
