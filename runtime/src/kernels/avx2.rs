//! AVX2 with FMA and F16C: eight values at a time; integer products with AVX-VNNI if the processor has it.

use super::Gemm;
use super::input::{RowMut, Rows};
use super::int8_x86::{self, Pairs, Vnni256, hsum};
use super::int16_x86;
use super::math;
use super::panel::Panel;
use super::tokens::{Blocks, WideTile};
use super::tokens_avx2;
use super::wide::{self, WidePanel, WideRows};
use conpet_formats::model_spec::Activation;
use conpet_formats::quant::{self, QuantType};
use half::f16;
use std::arch::x86_64::*;
use zerocopy::FromBytes;

/// Proof that the processor has AVX2, FMA and F16C.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2 {
    vnni: bool,
}

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let there =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        there.then_some(Self { vnni: false })
    }

    /// As [`Avx2::detect`], but only if the processor has AVX-VNNI too.
    pub(super) fn detect_vnni() -> Option<Self> {
        Self::detect().filter(|_| is_x86_feature_detected!("avxvnni")).map(|_| Self { vnni: true })
    }

    pub(super) fn name(self) -> &'static str {
        if self.vnni { "avxvnni" } else { "avx2" }
    }

    pub(super) fn product(self, p: &Panel, x: Rows<'_>, out: &mut [f32]) {
        // SAFETY: a value of `Avx2` exists only if `detect` found avx2, fma and f16c, and `vnni` is
        // set only if it found avxvnni; so below.
        unsafe { if self.vnni { Vnni256::product(p, x, out) } else { Pairs::product(p, x, out) } }
    }

    pub(super) fn quantize(self, x: &[f32], row: RowMut<'_>) {
        // SAFETY: as above.
        unsafe { int8_x86::quantize(x, row) }
    }

    pub(super) fn unpack(self, p: &mut Panel, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        // SAFETY: as above.
        unsafe { int8_x86::unpack(p, ty, bytes, rows, k) }
    }

    /// Whether 16-bit integers are best multiplied with turned activations: with AVX-VNNI, panels are as fast.
    pub(super) fn turns_wide(self) -> bool {
        !self.vnni
    }

    pub(super) fn round_wide(self, x: &[f32; wide::RUN], limit: f32, codes: &mut [i16; wide::RUN]) -> f32 {
        // SAFETY: as above.
        unsafe { int16_x86::round(x, limit, codes) }
    }

    pub(super) fn unpack_wide(self, p: &mut WidePanel, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        // SAFETY: as above.
        unsafe { int16_x86::unpack(p, ty, bytes, rows, k) }
    }

    pub(super) fn product_wide(self, p: &WidePanel, x: WideRows<'_>, out: &mut [f32]) {
        if !self.vnni {
            return p.product(x, out);
        }
        // SAFETY: as above.
        unsafe { int16_x86::product256(p, x, out) }
    }

    pub(super) fn gemv_int8(self, ty: QuantType, bytes: &[u8], x: Rows<'_>, y: &mut [f32]) {
        // SAFETY: as above.
        unsafe { if self.vnni { Vnni256::gemv(ty, bytes, x, y) } else { Pairs::gemv(ty, bytes, x, y) } }
    }
}

impl Avx2 {
    pub(super) fn product_turned(self, w: &[f32], rows: usize, x: Blocks<'_>, c: &mut [f32]) {
        // SAFETY: as above.
        unsafe { tokens_avx2::product(w, rows, x, c) }
    }

    pub(super) fn unpack_tile(self, tile: &mut WideTile, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        // SAFETY: as above.
        unsafe { tokens_avx2::unpack(tile, ty, bytes, rows, k) }
    }

    pub(super) fn product_turned_wide(self, w: &WideTile, rows: usize, x: Blocks<'_>, c: &mut [f32]) {
        // SAFETY: as above.
        unsafe { tokens_avx2::product_wide(w, rows, x, c) }
    }

    /// Stores `c [rows, pitch]` turned back.
    ///
    /// # Safety
    /// * `rows` numbers may be written at each of `out + t · ldo`, `t` below `n`.
    pub(super) unsafe fn store_turned(self, c: &[f32], pitch: usize, rows: usize, n: usize, out: *mut f32, ldo: usize) {
        // SAFETY: as above, and by this function's contract.
        unsafe { tokens_avx2::store(c, pitch, rows, n, out, ldo) }
    }
}

/// Wraps functions that need the features in safe methods; `self` is the proof.
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
    gemm(g: Gemm<'_>, c: &mut [f32], ldc: usize);
    transpose(x: &[f32], ldx: usize, rows: usize, cols: usize, out: &mut [f32], ldo: usize);
    widen(x: &[f16], out: &mut [f32]);
    softmax_step(x: &mut [f32], max: f32) -> (f32, f32);
    dot_f32(a: &[f32], b: &[f32]) -> f32;
    axpy_f32(acc: &mut [f32], a: f32, v: &[f32]);
    softmax(x: &mut [f32]);
    layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32);
    gate_mul(activation: Activation, gate: &mut [f32], up: &[f32]);
    activate(activation: Activation, x: &mut [f32]);
    soft_cap(x: &mut [f32], cap: f32);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dequantize(ty: QuantType, bytes: &[u8], out: &mut [f32]) {
    match <[f16]>::ref_from_bytes(bytes) {
        Ok(halves) if ty == QuantType::F16 => widen(halves, out),
        _ => quant::dequantize(ty, bytes, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn softmax(x: &mut [f32]) {
    math::softmax(x);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    math::layer_norm(x, weight, bias, eps);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn gate_mul(activation: Activation, gate: &mut [f32], up: &[f32]) {
    math::gate_mul(activation, gate, up);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn activate(activation: Activation, x: &mut [f32]) {
    math::activate(activation, x);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn soft_cap(x: &mut [f32], cap: f32) {
    math::soft_cap(x, cap);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn axpy_f32(acc: &mut [f32], a: f32, v: &[f32]) {
    acc.iter_mut().zip(v).for_each(|(o, v)| *o = a.mul_add(*v, *o));
}

/// # Safety
/// * `h` holds at least 8 halves.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_f16(h: &[f16]) -> __m256 {
    // SAFETY: 16 bytes are readable by this function's contract; the load is unaligned.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(h.as_ptr().cast()) })
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
    let sum = hsum(four(sums));
    a[n..].iter().zip(&b[n..]).fold(sum, |s, (a, b)| a.mul_add(*b, s))
}

/// `y[r] = row r · x`; blocks are decoded on the stack (for quantized types this runs only with
/// [`super::Kernels::exact`]).
#[target_feature(enable = "avx2,fma,f16c")]
fn gemv(ty: QuantType, bytes: &[u8], x: &[f32], y: &mut [f32]) {
    let row = bytes.len() / y.len();
    if ty == QuantType::F16 && x.len() <= 32 && x.len().is_multiple_of(8) {
        return f16_short(bytes, x, y);
    }
    let (len, mut block) = (ty.block_len().max(32), [0.0; 256]);
    let step = ty.block_bytes() * (len / ty.block_len());
    for (y, w) in y.iter_mut().zip(bytes.chunks_exact(row)) {
        *y = match ty {
            QuantType::F16 => f16_row(w, x),
            QuantType::F32 => f32_row(w, x),
            _ => w.chunks(step).zip(x.chunks(len)).fold(0.0, |sum, (b, x)| {
                quant::dequantize(ty, b, &mut block[..x.len()]);
                sum + dot_f32(&block[..x.len()], x)
            }),
        };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn four(s: [__m256; 4]) -> __m256 {
    _mm256_add_ps(_mm256_add_ps(s[0], s[1]), _mm256_add_ps(s[2], s[3]))
}

/// Rows of 8, 16, 24 or 32 halves, as LoRA's second factor has: eight rows at a time, whose sums are reduced
/// together, since reducing one row costs more than multiplying it.
#[target_feature(enable = "avx2,fma,f16c")]
fn f16_short(bytes: &[u8], x: &[f32], y: &mut [f32]) {
    let row = 2 * x.len();
    let (mut eights, mut rows) = (y.chunks_exact_mut(8), bytes.chunks_exact(8 * row));
    for (y, w) in (&mut eights).zip(&mut rows) {
        let mut s = [_mm256_setzero_ps(); 8];
        for at in (0..x.len()).step_by(8) {
            // SAFETY: `at + 8 <= x.len()`, and each of the eight rows of `w` holds two bytes for each number of `x`.
            unsafe {
                let x = _mm256_loadu_ps(x.as_ptr().add(at));
                for (r, s) in s.iter_mut().enumerate() {
                    let h = _mm_loadu_si128(w.as_ptr().add(r * row + 2 * at).cast());
                    *s = _mm256_fmadd_ps(_mm256_cvtph_ps(h), x, *s);
                }
            }
        }
        let four = |s: &[__m256]| _mm256_hadd_ps(_mm256_hadd_ps(s[0], s[1]), _mm256_hadd_ps(s[2], s[3]));
        let (a, b) = (four(&s[..4]), four(&s[4..]));
        let sums = _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b));
        // SAFETY: `y` holds eight values.
        unsafe { _mm256_storeu_ps(y.as_mut_ptr(), sums) };
    }
    for (y, w) in eights.into_remainder().iter_mut().zip(rows.remainder().chunks_exact(row)) {
        *y = f16_row(w, x);
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn f16_row(w: &[u8], x: &[f32]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    let mut n = x.len() / 32 * 32;
    for at in (0..n).step_by(32) {
        int8_x86::ahead(&w[2 * at..2 * at + 64]);
        for (j, s) in sums.iter_mut().enumerate() {
            let at = at + 8 * j;
            // SAFETY: `w` holds two bytes for each number of `x`, and `at + 8 <= n`.
            *s = unsafe {
                let h = _mm_loadu_si128(w.as_ptr().add(2 * at).cast());
                _mm256_fmadd_ps(_mm256_cvtph_ps(h), _mm256_loadu_ps(x.as_ptr().add(at)), *s)
            };
        }
    }
    while x.len() - n >= 8 {
        // The second factors of LoRA are often just this wide.
        // SAFETY: eight halves and eight values are left.
        sums[0] = unsafe {
            let h = _mm_loadu_si128(w.as_ptr().add(2 * n).cast());
            _mm256_fmadd_ps(_mm256_cvtph_ps(h), _mm256_loadu_ps(x.as_ptr().add(n)), sums[0])
        };
        n += 8;
    }
    let tail = w[2 * n..].chunks_exact(2).zip(&x[n..]);
    tail.fold(hsum(four(sums)), |s, (w, x)| quant::f16([w[0], w[1]]).mul_add(*x, s))
}

#[target_feature(enable = "avx2,fma,f16c")]
fn f32_row(w: &[u8], x: &[f32]) -> f32 {
    let mut sums = [_mm256_setzero_ps(); 4];
    let n = x.len() / 32 * 32;
    for at in (0..n).step_by(32) {
        int8_x86::ahead(&w[4 * at..4 * at + 128]);
        for (j, s) in sums.iter_mut().enumerate() {
            let at = at + 8 * j;
            // SAFETY: `w` holds four bytes for each number of `x`, and `at + 8 <= n`.
            *s = unsafe {
                _mm256_fmadd_ps(_mm256_loadu_ps(w.as_ptr().add(4 * at).cast()), _mm256_loadu_ps(x.as_ptr().add(at)), *s)
            };
        }
    }
    let tail = w[4 * n..].chunks_exact(4).zip(&x[n..]);
    tail.fold(hsum(four(sums)), |s, (w, x)| f32::from_le_bytes([w[0], w[1], w[2], w[3]]).mul_add(*x, s))
}

/// Rows multiplied with two vectors of columns in registers: 12 of 16 registers hold sums.
const GEMM_ROWS: usize = 6;

/// `c = a · b`, or added to it; shapes were checked by [`Gemm::check`].
#[target_feature(enable = "avx2,fma,f16c")]
fn gemm(g: Gemm<'_>, c: &mut [f32], ldc: usize) {
    for r in (0..g.rows).step_by(GEMM_ROWS) {
        for j in (0..g.cols).step_by(16) {
            match (g.rows - r).min(GEMM_ROWS) {
                6 => gemm_micro::<6>(&g, r, j, c, ldc),
                5 => gemm_micro::<5>(&g, r, j, c, ldc),
                4 => gemm_micro::<4>(&g, r, j, c, ldc),
                3 => gemm_micro::<3>(&g, r, j, c, ldc),
                2 => gemm_micro::<2>(&g, r, j, c, ldc),
                _ => gemm_micro::<1>(&g, r, j, c, ldc),
            }
        }
    }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn gemm_micro<const R: usize>(g: &Gemm<'_>, r: usize, j: usize, c: &mut [f32], ldc: usize) {
    // SAFETY: rows `r..r + R` of `a` and `c`, columns `j..j + 16` of `b` and `c`, all of `k`: in
    // bounds by `Gemm::check`, which the caller of `gemm` has run.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; R];
        let (a, b, c) = (g.a.as_ptr().add(r * g.lda), g.b.as_ptr().add(j), c.as_mut_ptr().add(r * ldc + j));
        if g.add {
            for (i, s) in sums.iter_mut().enumerate() {
                *s = [_mm256_loadu_ps(c.add(i * ldc)), _mm256_loadu_ps(c.add(i * ldc + 8))];
            }
        }
        for k in 0..g.k {
            let (b0, b1) = (_mm256_loadu_ps(b.add(k * g.ldb)), _mm256_loadu_ps(b.add(k * g.ldb + 8)));
            for (i, s) in sums.iter_mut().enumerate() {
                let x = _mm256_broadcast_ss(&*a.add(i * g.lda + k));
                *s = [_mm256_fmadd_ps(x, b0, s[0]), _mm256_fmadd_ps(x, b1, s[1])];
            }
        }
        for (i, s) in sums.into_iter().enumerate() {
            _mm256_storeu_ps(c.add(i * ldc), s[0]);
            _mm256_storeu_ps(c.add(i * ldc + 8), s[1]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn transpose(x: &[f32], ldx: usize, rows: usize, cols: usize, out: &mut [f32], ldo: usize) {
    let (whole_rows, whole_cols) = (rows / 8 * 8, cols / 8 * 8);
    for r in (0..whole_rows).step_by(8) {
        for c in (0..whole_cols).step_by(8) {
            let mut block = [_mm256_setzero_si256(); 8];
            for (i, v) in block.iter_mut().enumerate() {
                // The rows after these are wanted next; a prefetch of an address that is not mapped does nothing.
                let next = x.as_ptr().wrapping_add((rows + r + i) * ldx + c);
                _mm_prefetch::<_MM_HINT_T1>(next.cast());
                // SAFETY: row `r + i < rows`, columns `c..c + 8 <= cols`, checked by the caller.
                *v = unsafe { _mm256_loadu_si256(x.as_ptr().add((r + i) * ldx + c).cast()) };
            }
            for (i, v) in int8_x86::transpose(block).into_iter().enumerate() {
                // SAFETY: row `c + i < cols` of `out`, columns `r..r + 8 <= rows`, checked by the caller.
                unsafe { _mm256_storeu_si256(out.as_mut_ptr().add((c + i) * ldo + r).cast(), v) };
            }
        }
    }
    for r in 0..rows {
        for c in if r < whole_rows { whole_cols } else { 0 }..cols {
            out[c * ldo + r] = x[r * ldx + c];
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen(x: &[f16], out: &mut [f32]) {
    let (mut from, mut to) = (x.chunks_exact(8), out.chunks_exact_mut(8));
    for (h, o) in (&mut from).zip(&mut to) {
        // SAFETY: eight halves and eight floats.
        unsafe { _mm256_storeu_ps(o.as_mut_ptr(), load_f16(h)) };
    }
    for (h, o) in from.remainder().iter().zip(to.into_remainder()) {
        *o = quant::f16(h.to_le_bytes());
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn softmax_step(x: &mut [f32], max: f32) -> (f32, f32) {
    math::softmax_step(x, max)
}
