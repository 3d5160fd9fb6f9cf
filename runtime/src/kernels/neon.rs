//! NEON: four numbers at a time, on every 64-bit ARM.

use super::input::{self, RowMut, Rows};
use super::math;
use super::naive::Naive;
use super::panel::{self, Panel};
use conpet_formats::quant::{self, QuantType};
use half::f16;
use std::arch::aarch64::*;

/// Proof that the processor has NEON.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neon(());

/// Tokens and rows multiplied together in registers: 16 sums, 4 inputs and a weight of 32 registers.
const TOKENS: usize = 4;
const ROWS: usize = 4;

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }

    pub(super) fn dequantize(self, ty: QuantType, bytes: &[u8], out: &mut [f32]) {
        quant::dequantize(ty, bytes, out);
    }

    /// `y[r] = row r · x`, decoded block by block on the stack.
    pub(super) fn gemv(self, ty: QuantType, bytes: &[u8], x: &[f32], y: &mut [f32]) {
        let row = bytes.len() / y.len();
        let len = ty.block_len().max(64);
        let step = ty.block_bytes() * (len / ty.block_len());
        let mut block = [0.0; 256];
        for (y, w) in y.iter_mut().zip(bytes.chunks_exact(row)) {
            *y = 0.0;
            for (b, x) in w.chunks(step).zip(x.chunks(len)) {
                quant::dequantize(ty, b, &mut block[..x.len()]);
                *y += self.dot_f32(&block[..x.len()], x);
            }
        }
    }

    pub(super) fn quantize(self, x: &[f32], row: RowMut<'_>) {
        input::quantize(x, row);
    }

    pub(super) fn unpack(self, p: &mut Panel, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        p.unpack::<quant::Portable>(ty, bytes, rows, k, panel::interleave);
    }

    pub(super) fn product(self, p: &Panel, x: Rows<'_>, out: &mut [f32]) {
        panel::product(p, x, out);
    }

    pub(super) fn gemv_int8(self, ty: QuantType, bytes: &[u8], x: Rows<'_>, y: &mut [f32]) {
        Naive.gemv_int8(ty, bytes, x, y);
    }

    pub(super) fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        let mut out = [0.0];
        // SAFETY: a value of `Neon` exists only if `detect` found neon.
        unsafe { micro::<1, 1>(a, b, a.len(), &mut out, 1) };
        out[0]
    }

    pub(super) fn dot_f16(self, a: &[f32], b: &[f16]) -> f32 {
        let mut sum = 0.0;
        let mut block = [0.0; 64];
        for (a, b) in a.chunks(64).zip(b.chunks(64)) {
            block.iter_mut().zip(b).for_each(|(o, h)| *o = quant::f16(h.to_le_bytes()));
            sum += self.dot_f32(a, &block[..a.len()]);
        }
        sum
    }

    pub(super) fn axpy_f32(self, acc: &mut [f32], a: f32, v: &[f32]) {
        acc.iter_mut().zip(v).for_each(|(o, v)| *o = a.mul_add(*v, *o));
    }

    pub(super) fn axpy_f16(self, acc: &mut [f32], a: f32, v: &[f16]) {
        acc.iter_mut().zip(v).for_each(|(o, v)| *o = a.mul_add(quant::f16(v.to_le_bytes()), *o));
    }

    pub(super) fn softmax(self, x: &mut [f32]) {
        math::softmax(x);
    }

    pub(super) fn silu_mul(self, gate: &mut [f32], up: &[f32]) {
        math::silu_mul(gate, up);
    }

    /// `prod [n, rows] = x [n, k] · w [rows, k]ᵀ`.
    pub(super) fn tile(self, w: &[f32], x: &[f32], k: usize, prod: &mut [f32]) {
        let (rows, n) = (w.len() / k, x.len() / k);
        for t in (0..n).step_by(TOKENS) {
            let tokens = TOKENS.min(n - t);
            let mut r = 0;
            while r < rows {
                let many = if rows - r >= ROWS && tokens == TOKENS { ROWS } else { 1 };
                let (w, x) = (&w[r * k..(r + many) * k], &x[t * k..(t + tokens) * k]);
                let out = &mut prod[t * rows + r..];
                // SAFETY: a value of `Neon` exists only if `detect` found neon.
                unsafe {
                    match (many, tokens) {
                        (ROWS, _) => micro::<ROWS, TOKENS>(w, x, k, out, rows),
                        (_, 4) => micro::<1, 4>(w, x, k, out, rows),
                        (_, 3) => micro::<1, 3>(w, x, k, out, rows),
                        (_, 2) => micro::<1, 2>(w, x, k, out, rows),
                        (_, _) => micro::<1, 1>(w, x, k, out, rows),
                    }
                }
                r += many;
            }
        }
    }
}

/// As in AVX2: one vector sum for each product, whatever the grouping.
#[inline]
#[target_feature(enable = "neon")]
fn micro<const R: usize, const T: usize>(w: &[f32], x: &[f32], k: usize, out: &mut [f32], stride: usize) {
    assert!(w.len() == R * k && x.len() == T * k && out.len() >= (T - 1) * stride + R);
    let mut sums = [[vdupq_n_f32(0.0); T]; R];
    let n = k / 4 * 4;
    for at in (0..n).step_by(4) {
        let mut xs = [vdupq_n_f32(0.0); T];
        for (t, v) in xs.iter_mut().enumerate() {
            // SAFETY: row `t < T` of `x`, columns `at..at + 4 <= k`.
            *v = unsafe { vld1q_f32(x.as_ptr().add(t * k + at)) };
        }
        for r in 0..R {
            // SAFETY: row `r < R` of `w`, columns `at..at + 4 <= k`.
            let wv = unsafe { vld1q_f32(w.as_ptr().add(r * k + at)) };
            for t in 0..T {
                sums[r][t] = vfmaq_f32(sums[r][t], wv, xs[t]);
            }
        }
    }
    for r in 0..R {
        for t in 0..T {
            let tail = w[r * k + n..(r + 1) * k].iter().zip(&x[t * k + n..(t + 1) * k]);
            out[t * stride + r] = tail.fold(vaddvq_f32(sums[r][t]), |s, (a, b)| a.mul_add(*b, s));
        }
    }
}
