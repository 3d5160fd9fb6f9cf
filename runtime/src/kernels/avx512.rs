//! AVX-512: sixteen numbers at a time where it pays, in the product of a batch; AVX2 for the rest.

use super::avx2::Avx2;
use conpet_formats::quant::QuantType;
use half::f16;
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512F, besides AVX2.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512 {
    narrow: Avx2,
}

/// Tokens and rows multiplied together in registers: 24 sums, 6 inputs, 1 weight of 32 registers.
const TOKENS: usize = 6;
const ROWS: usize = 4;

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let narrow = Avx2::detect()?;
        is_x86_feature_detected!("avx512f").then_some(Self { narrow })
    }

    pub(super) fn tile(self, w: &[f32], x: &[f32], k: usize, prod: &mut [f32]) {
        // SAFETY: a value of `Avx512` exists only if `detect` found avx512f.
        unsafe { tile(w, x, k, prod) }
    }
}

/// Hands a method on to AVX2.
macro_rules! narrow {
    ($($name:ident ( $($arg:ident : $ty:ty),* ) $(-> $ret:ty)?;)*) => {
        impl Avx512 {
            $(pub(super) fn $name(self, $($arg: $ty),*) $(-> $ret)? {
                self.narrow.$name($($arg),*)
            })*
        }
    };
}

narrow! {
    dequantize(ty: QuantType, bytes: &[u8], out: &mut [f32]);
    gemv(ty: QuantType, bytes: &[u8], x: &[f32], y: &mut [f32]);
    dot_f32(a: &[f32], b: &[f32]) -> f32;
    dot_f16(a: &[f32], b: &[f16]) -> f32;
    axpy_f32(acc: &mut [f32], a: f32, v: &[f32]);
    axpy_f16(acc: &mut [f32], a: f32, v: &[f16]);
    softmax(x: &mut [f32]);
    silu_mul(gate: &mut [f32], up: &[f32]);
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
                (ROWS, 6) => micro::<ROWS, 6>(w, x, k, out, rows),
                (ROWS, 5) => micro::<ROWS, 5>(w, x, k, out, rows),
                (ROWS, 4) => micro::<ROWS, 4>(w, x, k, out, rows),
                (ROWS, 3) => micro::<ROWS, 3>(w, x, k, out, rows),
                (ROWS, 2) => micro::<ROWS, 2>(w, x, k, out, rows),
                (ROWS, _) => micro::<ROWS, 1>(w, x, k, out, rows),
                (_, _) => {
                    for i in 0..tokens {
                        micro::<1, 1>(w, &x[i * k..(i + 1) * k], k, &mut out[i * rows..], rows);
                    }
                }
            }
            r += many;
        }
        t += tokens;
    }
}

/// `R` rows times `T` tokens in registers. Each product has one vector sum whatever `R` and `T`
/// are, so that grouping never changes a result.
#[inline]
#[target_feature(enable = "avx512f")]
fn micro<const R: usize, const T: usize>(w: &[f32], x: &[f32], k: usize, out: &mut [f32], stride: usize) {
    assert!(w.len() == R * k && x.len() == T * k && out.len() >= (T - 1) * stride + R);
    let mut sums = [[_mm512_setzero_ps(); T]; R];
    let n = k / 16 * 16;
    let (wp, xp) = (w.as_ptr(), x.as_ptr());
    let mut at = 0;
    while at < n {
        let mut xs = [_mm512_setzero_ps(); T];
        for (t, v) in xs.iter_mut().enumerate() {
            // SAFETY: row `t < T` of `x`, columns `at..at + 16 <= k`.
            *v = unsafe { _mm512_loadu_ps(xp.add(t * k + at)) };
        }
        for r in 0..R {
            // SAFETY: row `r < R` of `w`, columns `at..at + 16 <= k`.
            let wv = unsafe { _mm512_loadu_ps(wp.add(r * k + at)) };
            for t in 0..T {
                sums[r][t] = _mm512_fmadd_ps(wv, xs[t], sums[r][t]);
            }
        }
        at += 16;
    }
    for r in 0..R {
        for t in 0..T {
            let tail = w[r * k + n..(r + 1) * k].iter().zip(&x[t * k + n..(t + 1) * k]);
            out[t * stride + r] = tail.fold(_mm512_reduce_add_ps(sums[r][t]), |s, (a, b)| a.mul_add(*b, s));
        }
    }
}
