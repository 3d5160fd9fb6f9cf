//! AVX-512F for the batched product, which is bound by multiply-adds; all else is [`Avx2`].

use super::avx2::Avx2;
use conpet_formats::quant::QuantType;
use half::f16;
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512F beside AVX2.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(Avx2);

/// 24 sums, 4 inputs and a weight of 32 registers.
const TOKENS: usize = 4;
const ROWS: usize = 6;

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        Avx2::detect().filter(|_| is_x86_feature_detected!("avx512f")).map(Self)
    }
    pub(super) fn tile(self, w: &[f32], x: &[f32], k: usize, prod: &mut [f32]) {
        // SAFETY: a value of `Avx512` exists only if `detect` found avx512f.
        unsafe { tile(w, x, k, prod) }
    }
    pub(super) fn dequantize(self, ty: QuantType, bytes: &[u8], out: &mut [f32]) {
        self.0.dequantize(ty, bytes, out);
    }
    pub(super) fn gemv(self, ty: QuantType, bytes: &[u8], x: &[f32], y: &mut [f32]) {
        self.0.gemv(ty, bytes, x, y);
    }
    pub(super) fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        self.0.dot_f32(a, b)
    }
    pub(super) fn dot_f16(self, a: &[f32], b: &[f16]) -> f32 {
        self.0.dot_f16(a, b)
    }
    pub(super) fn axpy_f32(self, acc: &mut [f32], a: f32, v: &[f32]) {
        self.0.axpy_f32(acc, a, v);
    }
    pub(super) fn axpy_f16(self, acc: &mut [f32], a: f32, v: &[f16]) {
        self.0.axpy_f16(acc, a, v);
    }
    pub(super) fn softmax(self, x: &mut [f32]) {
        self.0.softmax(x);
    }
    pub(super) fn silu_mul(self, gate: &mut [f32], up: &[f32]) {
        self.0.silu_mul(gate, up);
    }
}

/// `prod [n, rows] = x [n, k] · w [rows, k]ᵀ`.
#[target_feature(enable = "avx512f")]
fn tile(w: &[f32], x: &[f32], k: usize, prod: &mut [f32]) {
    let (rows, n) = (w.len() / k, x.len() / k);
    let mut t = 0;
    while t < n {
        let tokens = TOKENS.min(n - t);
        let mut r = 0;
        while r < rows {
            let many = if rows - r >= ROWS { ROWS } else { 1 };
            let (w, x) = (&w[r * k..(r + many) * k], &x[t * k..(t + tokens) * k]);
            let out = &mut prod[t * rows + r..];
            match (many, tokens) {
                (ROWS, 4) => micro::<ROWS, 4>(w, x, k, out, rows),
                (ROWS, 3) => micro::<ROWS, 3>(w, x, k, out, rows),
                (ROWS, 2) => micro::<ROWS, 2>(w, x, k, out, rows),
                (ROWS, _) => micro::<ROWS, 1>(w, x, k, out, rows),
                (_, 4) => micro::<1, 4>(w, x, k, out, rows),
                (_, 3) => micro::<1, 3>(w, x, k, out, rows),
                (_, 2) => micro::<1, 2>(w, x, k, out, rows),
                (_, _) => micro::<1, 1>(w, x, k, out, rows),
            }
            r += many;
        }
        t += tokens;
    }
}

/// As in AVX2: one vector sum for each product, whatever the grouping.
#[inline]
#[target_feature(enable = "avx512f")]
fn micro<const R: usize, const T: usize>(w: &[f32], x: &[f32], k: usize, out: &mut [f32], stride: usize) {
    assert!(w.len() == R * k && x.len() == T * k && out.len() >= (T - 1) * stride + R);
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    let (wp, xp) = (w.as_ptr(), x.as_ptr());
    let mut at = 0;
    while at < k {
        let mask: __mmask16 = if k - at >= 16 { !0 } else { (1 << (k - at)) - 1 };
        let mut xs = [_mm512_setzero_ps(); T];
        for (t, v) in xs.iter_mut().enumerate() {
            // SAFETY: row `t < T` of `x`; the mask keeps columns below `k`.
            *v = unsafe { _mm512_maskz_loadu_ps(mask, xp.add(t * k + at)) };
        }
        for r in 0..R {
            // SAFETY: row `r < R` of `w`; the mask keeps columns below `k`.
            let wv = unsafe { _mm512_maskz_loadu_ps(mask, wp.add(r * k + at)) };
            for t in 0..T {
                sums[r][t] = _mm512_fmadd_ps(wv, xs[t], sums[r][t]);
            }
        }
        at += 16;
    }
    for r in 0..R {
        for t in 0..T {
            out[t * stride + r] = _mm512_reduce_add_ps(sums[r][t]);
        }
    }
}
