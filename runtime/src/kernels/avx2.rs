//! AVX2 with FMA and F16C: eight numbers at a time.

use super::math;
use conpet_formats::quant::{self, Block, QuantType, q4_0, q4_1, q8_0};
use half::f16;
use std::arch::x86_64::*;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2(());

/// Tokens and rows multiplied together in registers: 12 sums, 3 inputs, 1 weight of 16 registers.
const TOKENS: usize = 3;
const ROWS: usize = 4;

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let there =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        there.then_some(Self(()))
    }
}

/// Makes safe methods of functions that need the features; `self` is the proof.
macro_rules! methods {
    ($($name:ident ( $($arg:ident : $ty:ty),* ) $(-> $ret:ty)?;)*) => {
        impl Avx2 {
            $(pub(super) fn $name(self, $($arg: $ty),*) $(-> $ret)? {
                // SAFETY: a value of `Avx2` exists only if `detect` found avx2, fma and f16c.
                unsafe { $name($($arg),*) }
            })*
        }
    };
}

methods! {
    dequantize(ty: QuantType, bytes: &[u8], out: &mut [f32]);
    gemv(ty: QuantType, bytes: &[u8], x: &[f32], y: &mut [f32]);
    tile(w: &[f32], x: &[f32], k: usize, prod: &mut [f32]);
    dot_f32(a: &[f32], b: &[f32]) -> f32;
    dot_f16(a: &[f32], b: &[f16]) -> f32;
    axpy_f32(acc: &mut [f32], a: f32, v: &[f32]);
    axpy_f16(acc: &mut [f32], a: f32, v: &[f16]);
    softmax(x: &mut [f32]);
    silu_mul(gate: &mut [f32], up: &[f32]);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dequantize(ty: QuantType, bytes: &[u8], out: &mut [f32]) {
    quant::dequantize(ty, bytes, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn softmax(x: &mut [f32]) {
    math::softmax(x);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn silu_mul(gate: &mut [f32], up: &[f32]) {
    math::silu_mul(gate, up);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn axpy_f32(acc: &mut [f32], a: f32, v: &[f32]) {
    acc.iter_mut().zip(v).for_each(|(o, v)| *o = a.mul_add(*v, *o));
}

#[target_feature(enable = "avx2,fma,f16c")]
fn axpy_f16(acc: &mut [f32], a: f32, v: &[f16]) {
    let s = _mm256_set1_ps(a);
    let mut chunks = acc.chunks_exact_mut(8);
    let mut halves = v.chunks_exact(8);
    for (o, h) in (&mut chunks).zip(&mut halves) {
        // SAFETY: `o` is 8 floats and `h` 8 halves long.
        unsafe {
            let sum = _mm256_fmadd_ps(s, load_f16(h), _mm256_loadu_ps(o.as_ptr()));
            _mm256_storeu_ps(o.as_mut_ptr(), sum);
        }
    }
    for (o, h) in chunks.into_remainder().iter_mut().zip(halves.remainder()) {
        *o = a.mul_add(quant::f16(h.to_le_bytes()), *o);
    }
}

/// # Safety
/// * `h` holds at least 8 halves.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_f16(h: &[f16]) -> __m256 {
    // SAFETY: 16 bytes are readable by this function's contract; the load is unaligned.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(h.as_ptr().cast()) })
}

#[target_feature(enable = "avx2,fma,f16c")]
fn hsum(v: __m256) -> f32 {
    let q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps::<1>(d, d)))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    let n = a.len() / 32 * 32;
    for at in (0..n).step_by(32) {
        for (j, s) in sums.iter_mut().enumerate() {
            // SAFETY: `at + 8 * j + 8 <= n`, within both slices, which are equally long.
            *s = unsafe {
                _mm256_fmadd_ps(
                    _mm256_loadu_ps(a.as_ptr().add(at + 8 * j)),
                    _mm256_loadu_ps(b.as_ptr().add(at + 8 * j)),
                    *s,
                )
            };
        }
    }
    let sum = hsum(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])));
    a[n..].iter().zip(&b[n..]).fold(sum, |s, (a, b)| a.mul_add(*b, s))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dot_f16(a: &[f32], b: &[f16]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 2];
    let n = a.len() / 16 * 16;
    for at in (0..n).step_by(16) {
        for (j, s) in sums.iter_mut().enumerate() {
            let at = at + 8 * j;
            // SAFETY: `at + 8 <= n`, within both slices, which are equally long.
            *s = unsafe { _mm256_fmadd_ps(_mm256_loadu_ps(a.as_ptr().add(at)), load_f16(&b[at..at + 8]), *s) };
        }
    }
    let sum = hsum(_mm256_add_ps(sums[0], sums[1]));
    a[n..].iter().zip(&b[n..]).fold(sum, |s, (a, b)| a.mul_add(quant::f16(b.to_le_bytes()), s))
}

/// `y[r] = row r · x`, decoded in registers for the plain block types.
#[target_feature(enable = "avx2,fma,f16c")]
fn gemv(ty: QuantType, bytes: &[u8], x: &[f32], y: &mut [f32]) {
    let row = bytes.len() / y.len();
    for (y, w) in y.iter_mut().zip(bytes.chunks_exact(row)) {
        *y = match ty {
            QuantType::Q8_0 => blocks32(quant::blocks::<q8_0::BlockQ8_0>(w).unwrap_or_default(), x, |b| q8_0(b)),
            QuantType::Q4_0 => blocks32(quant::blocks::<q4_0::BlockQ4_0>(w).unwrap_or_default(), x, |b| q4_0(b)),
            QuantType::Q4_1 => blocks32(quant::blocks::<q4_1::BlockQ4_1>(w).unwrap_or_default(), x, |b| q4_1(b)),
            QuantType::F16 => f16_row(w, x),
            QuantType::F32 => f32_row(w, x),
            other => {
                let mut sum = 0.0;
                let len = other.block_len().max(32);
                let mut block = [0.0; 256];
                let step = other.block_bytes() * (len / other.block_len());
                for (b, x) in w.chunks(step).zip(x.chunks(len)) {
                    quant::dequantize(other, b, &mut block[..x.len()]);
                    sum += dot_f32(&block[..x.len()], x);
                }
                sum
            }
        };
    }
}

/// Sums blocks of 32 whose numbers `decode` turns into four vectors.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn blocks32<B: Block>(blocks: &[B], x: &[f32], decode: impl Fn(&B) -> [__m256; 4]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    for (b, x) in blocks.iter().zip(x.chunks_exact(32)) {
        let v = decode(b);
        for j in 0..4 {
            // SAFETY: `x` is 32 floats long.
            sums[j] = unsafe { _mm256_fmadd_ps(v[j], _mm256_loadu_ps(x.as_ptr().add(8 * j)), sums[j]) };
        }
    }
    hsum(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3])))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn scale(bytes: [u8; 2]) -> __m256 {
    _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes)))))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q8_0(b: &q8_0::BlockQ8_0) -> [__m256; 4] {
    let d = scale(b.d);
    let mut out = [d; 4];
    for (j, o) in out.iter_mut().enumerate() {
        // SAFETY: 8 of the block's 32 bytes.
        let q = unsafe { _mm_loadl_epi64(b.qs.as_ptr().add(8 * j).cast()) };
        *o = _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q)));
    }
    out
}

/// The 32 nibbles of 16 bytes as floats: low nibbles are numbers 0..16, high ones 16..32.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn nibbles(qs: &[u8; 16]) -> [__m256; 4] {
    // SAFETY: 16 bytes.
    let q = unsafe { _mm_loadu_si128(qs.as_ptr().cast()) };
    let mask = _mm_set1_epi8(15);
    let (lo, hi) = (_mm_and_si128(q, mask), _mm_and_si128(_mm_srli_epi16::<4>(q), mask));
    [lo, _mm_srli_si128::<8>(lo), hi, _mm_srli_si128::<8>(hi)].map(|v| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(v)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_0(b: &q4_0::BlockQ4_0) -> [__m256; 4] {
    let d = scale(b.d);
    let eight = _mm256_set1_ps(8.0);
    nibbles(&b.qs).map(|v| _mm256_mul_ps(d, _mm256_sub_ps(v, eight)))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn q4_1(b: &q4_1::BlockQ4_1) -> [__m256; 4] {
    let (d, m) = (scale(b.d), scale(b.m));
    nibbles(&b.qs).map(|v| _mm256_fmadd_ps(d, v, m))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn f16_row(w: &[u8], x: &[f32]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 2];
    let n = x.len() / 16 * 16;
    for at in (0..n).step_by(16) {
        for (j, s) in sums.iter_mut().enumerate() {
            let at = at + 8 * j;
            // SAFETY: `w` holds two bytes for each number of `x`, and `at + 8 <= n`.
            *s = unsafe {
                let h = _mm_loadu_si128(w.as_ptr().add(2 * at).cast());
                _mm256_fmadd_ps(_mm256_cvtph_ps(h), _mm256_loadu_ps(x.as_ptr().add(at)), *s)
            };
        }
    }
    let tail = w[2 * n..].chunks_exact(2).zip(&x[n..]);
    tail.fold(hsum(_mm256_add_ps(sums[0], sums[1])), |s, (w, x)| quant::f16([w[0], w[1]]).mul_add(*x, s))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn f32_row(w: &[u8], x: &[f32]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 2];
    let n = x.len() / 16 * 16;
    for at in (0..n).step_by(16) {
        for (j, s) in sums.iter_mut().enumerate() {
            let at = at + 8 * j;
            // SAFETY: `w` holds four bytes for each number of `x`, and `at + 8 <= n`.
            *s = unsafe {
                _mm256_fmadd_ps(_mm256_loadu_ps(w.as_ptr().add(4 * at).cast()), _mm256_loadu_ps(x.as_ptr().add(at)), *s)
            };
        }
    }
    let tail = w[4 * n..].chunks_exact(4).zip(&x[n..]);
    tail.fold(hsum(_mm256_add_ps(sums[0], sums[1])), |s, (w, x)| {
        f32::from_le_bytes([w[0], w[1], w[2], w[3]]).mul_add(*x, s)
    })
}

/// `prod [n, rows] = x [n, k] · w [rows, k]ᵀ`.
#[target_feature(enable = "avx2,fma,f16c")]
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
                (ROWS, 3) => micro::<ROWS, 3>(w, x, k, out, rows),
                (ROWS, 2) => micro::<ROWS, 2>(w, x, k, out, rows),
                (ROWS, _) => micro::<ROWS, 1>(w, x, k, out, rows),
                (_, 3) => micro::<1, 3>(w, x, k, out, rows),
                (_, 2) => micro::<1, 2>(w, x, k, out, rows),
                (_, _) => micro::<1, 1>(w, x, k, out, rows),
            }
            r += many;
        }
        t += tokens;
    }
}

/// `R` rows times `T` tokens in registers. Each product has one vector sum whatever `R` and `T`
/// are, so that grouping never changes a result.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro<const R: usize, const T: usize>(w: &[f32], x: &[f32], k: usize, out: &mut [f32], stride: usize) {
    assert!(w.len() == R * k && x.len() == T * k && out.len() >= (T - 1) * stride + R);
    let mut sums = [[_mm256_setzero_ps(); T]; R];
    let n = k / 8 * 8;
    let (wp, xp) = (w.as_ptr(), x.as_ptr());
    let mut at = 0;
    while at < n {
        let mut xs = [_mm256_setzero_ps(); T];
        for (t, v) in xs.iter_mut().enumerate() {
            // SAFETY: row `t < T` of `x`, columns `at..at + 8 <= k`.
            *v = unsafe { _mm256_loadu_ps(xp.add(t * k + at)) };
        }
        for r in 0..R {
            // SAFETY: row `r < R` of `w`, columns `at..at + 8 <= k`.
            let wv = unsafe { _mm256_loadu_ps(wp.add(r * k + at)) };
            for t in 0..T {
                sums[r][t] = _mm256_fmadd_ps(wv, xs[t], sums[r][t]);
            }
        }
        at += 8;
    }
    for r in 0..R {
        for t in 0..T {
            let tail = w[r * k + n..(r + 1) * k].iter().zip(&x[t * k + n..(t + 1) * k]);
            out[t * stride + r] = tail.fold(hsum(sums[r][t]), |s, (a, b)| a.mul_add(*b, s));
        }
    }
}
