//! AVX-512 with VNNI: sixteen values at a time in the products of a batch, where it pays; 256 bits for the rest.

use super::Gemm;
use super::avx2::Avx2;
use super::input::{RowMut, Rows};
use super::int8_x86::Vnni512;
use super::int16_x86;
use super::panel::{self, Panel};
use super::tokens::{Blocks, WideTile};
use super::wide::{self, WidePanel, WideRows};
use conpet_formats::model_spec::Activation;
use conpet_formats::quant::QuantType;
use half::f16;
use std::arch::x86_64::*;

/// Proof that the processor has AVX-512 F, VL and VNNI, besides AVX2.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512 {
    narrow: Avx2,
}

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let narrow = Avx2::detect()?;
        let there = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vnni");
        there.then_some(Self { narrow })
    }

    pub(super) fn product(self, p: &Panel, x: Rows<'_>, out: &mut [f32]) {
        // SAFETY: a value of `Avx512` exists only if `detect` found avx512f and avx512vnni.
        unsafe { product(p, x, out) }
    }

    pub(super) fn product_wide(self, p: &WidePanel, x: WideRows<'_>, out: &mut [f32]) {
        // SAFETY: as above.
        unsafe { int16_x86::product512(p, x, out) }
    }

    pub(super) fn gemv_int8(self, ty: QuantType, bytes: &[u8], x: Rows<'_>, y: &mut [f32]) {
        // SAFETY: as above.
        unsafe { Vnni512::gemv(ty, bytes, x, y) }
    }

    /// Stores `c [rows, pitch]` turned back.
    ///
    /// # Safety
    /// * `rows` numbers may be written at each of `out + t · ldo`, `t` below `n`.
    pub(super) unsafe fn store_turned(self, c: &[f32], pitch: usize, rows: usize, n: usize, out: *mut f32, ldo: usize) {
        // SAFETY: by this function's contract.
        unsafe { self.narrow.store_turned(c, pitch, rows, n, out, ldo) }
    }

    pub(super) fn gemm(self, g: Gemm<'_>, c: &mut [f32], ldc: usize) {
        // SAFETY: as above.
        unsafe { gemm(g, c, ldc) }
    }
}

/// Forwards methods to AVX2.
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
    quantize(x: &[f32], row: RowMut<'_>);
    unpack(p: &mut Panel, ty: QuantType, bytes: &[u8], rows: usize, k: usize);
    round_wide(x: &[f32; wide::RUN], limit: f32, codes: &mut [i16; wide::RUN]) -> f32;
    unpack_wide(p: &mut WidePanel, ty: QuantType, bytes: &[u8], rows: usize, k: usize);
    product_turned(w: &[f32], rows: usize, x: Blocks<'_>, c: &mut [f32]);
    unpack_tile(tile: &mut WideTile, ty: QuantType, bytes: &[u8], rows: usize, k: usize);
    product_turned_wide(w: &WideTile, rows: usize, x: Blocks<'_>, c: &mut [f32]);
    dequantize(ty: QuantType, bytes: &[u8], out: &mut [f32]);
    gemv(ty: QuantType, bytes: &[u8], x: &[f32], y: &mut [f32]);
    dot_f32(a: &[f32], b: &[f32]) -> f32;
    axpy_f32(acc: &mut [f32], a: f32, v: &[f32]);
    transpose(x: &[f32], ldx: usize, rows: usize, cols: usize, out: &mut [f32], ldo: usize);
    widen(x: &[f16], out: &mut [f32]);
    softmax_step(x: &mut [f32], max: f32) -> (f32, f32);
    softmax(x: &mut [f32]);
    layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32);
    gate_mul(activation: Activation, gate: &mut [f32], up: &[f32]);
    activate(activation: Activation, x: &mut [f32]);
    soft_cap(x: &mut [f32], cap: f32);
}

/// Rows multiplied with one or two vectors of columns in registers: 24 of 32 registers hold sums.
const GEMM_ROWS: usize = 12;

/// `c = a · b`, or added to it; shapes were checked by [`Gemm::check`].
#[target_feature(enable = "avx512f")]
fn gemm(g: Gemm<'_>, c: &mut [f32], ldc: usize) {
    for r in (0..g.rows).step_by(GEMM_ROWS) {
        let rows = (g.rows - r).min(GEMM_ROWS);
        let mut j = 0;
        while j + 32 <= g.cols {
            gemm_rows::<2>(&g, rows, r, j, c, ldc);
            j += 32;
        }
        if j < g.cols {
            gemm_rows::<1>(&g, rows, r, j, c, ldc);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn gemm_rows<const V: usize>(g: &Gemm<'_>, rows: usize, r: usize, j: usize, c: &mut [f32], ldc: usize) {
    match rows {
        12 => gemm_micro::<12, V>(g, r, j, c, ldc),
        8.. => {
            gemm_micro::<8, V>(g, r, j, c, ldc);
            if rows > 8 {
                gemm_rows::<V>(g, rows - 8, r + 8, j, c, ldc);
            }
        }
        4.. => {
            gemm_micro::<4, V>(g, r, j, c, ldc);
            if rows > 4 {
                gemm_rows::<V>(g, rows - 4, r + 4, j, c, ldc);
            }
        }
        3 => gemm_micro::<3, V>(g, r, j, c, ldc),
        2 => gemm_micro::<2, V>(g, r, j, c, ldc),
        _ => gemm_micro::<1, V>(g, r, j, c, ldc),
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn gemm_micro<const R: usize, const V: usize>(g: &Gemm<'_>, r: usize, j: usize, c: &mut [f32], ldc: usize) {
    // SAFETY: rows `r..r + R` of `a` and `c`, columns `j..j + 16 V` of `b` and `c`, all of `k`: in
    // bounds by `Gemm::check`, which the caller of `gemm` has run.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        let (a, b, c) = (g.a.as_ptr().add(r * g.lda), g.b.as_ptr().add(j), c.as_mut_ptr().add(r * ldc + j));
        if g.add {
            for (i, s) in sums.iter_mut().enumerate() {
                for (v, s) in s.iter_mut().enumerate() {
                    *s = _mm512_loadu_ps(c.add(i * ldc + 16 * v));
                }
            }
        }
        for k in 0..g.k {
            let mut cols = [_mm512_setzero_ps(); V];
            for (v, b_v) in cols.iter_mut().enumerate() {
                *b_v = _mm512_loadu_ps(b.add(k * g.ldb + 16 * v));
            }
            for (i, s) in sums.iter_mut().enumerate() {
                let x = _mm512_set1_ps(*a.add(i * g.lda + k));
                for (s, b_v) in s.iter_mut().zip(cols) {
                    *s = _mm512_fmadd_ps(x, b_v, *s);
                }
            }
        }
        for (i, s) in sums.into_iter().enumerate() {
            for (v, s) in s.into_iter().enumerate() {
                _mm512_storeu_ps(c.add(i * ldc + 16 * v), s);
            }
        }
    }
}

/// Tokens multiplied with a panel in registers: 12 integer and 12 float sums in 32 registers.
const PANEL_TOKENS: usize = 12;

/// `out [n, 16] = x · panelᵀ`, as [`panel::product`].
#[target_feature(enable = "avx512f,avx512vnni")]
fn product(p: &Panel, x: Rows<'_>, out: &mut [f32]) {
    let n = out.len() / panel::ROWS;
    for t in (0..n).step_by(PANEL_TOKENS) {
        match p.run {
            16 => tokens::<16>(p, x, t, (n - t).min(PANEL_TOKENS), out),
            _ => tokens::<32>(p, x, t, (n - t).min(PANEL_TOKENS), out),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn tokens<const RUN: usize>(p: &Panel, x: Rows<'_>, t: usize, many: usize, out: &mut [f32]) {
    match many {
        12 => int8_micro::<RUN, 12>(p, x, t, out),
        11 => int8_micro::<RUN, 11>(p, x, t, out),
        10 => int8_micro::<RUN, 10>(p, x, t, out),
        9 => int8_micro::<RUN, 9>(p, x, t, out),
        8 => int8_micro::<RUN, 8>(p, x, t, out),
        7 => int8_micro::<RUN, 7>(p, x, t, out),
        6 => int8_micro::<RUN, 6>(p, x, t, out),
        5 => int8_micro::<RUN, 5>(p, x, t, out),
        4 => int8_micro::<RUN, 4>(p, x, t, out),
        3 => int8_micro::<RUN, 3>(p, x, t, out),
        2 => int8_micro::<RUN, 2>(p, x, t, out),
        _ => int8_micro::<RUN, 1>(p, x, t, out),
    }
}

/// Sixteen rows times `T` tokens; sums are added run by run, whatever `T` is.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
fn int8_micro<const RUN: usize, const T: usize>(p: &Panel, x: Rows<'_>, t: usize, out: &mut [f32]) {
    const ROWS: usize = panel::ROWS;
    let runs = x.k / RUN;
    assert!(p.codes.len() >= x.k * ROWS && p.scales.len() >= runs * ROWS && p.mins.len() >= runs * ROWS);
    assert!(t + T <= x.n() && out.len() >= (t + T) * ROWS);
    let first = x.row(t);
    let (codes, scales, xsums) = (first.codes.as_ptr(), first.scales.as_ptr(), first.sums(RUN).as_ptr());
    let stride = x.stride();
    let mut sums = [_mm512_setzero_ps(); T];
    for run in 0..runs {
        // SAFETY: run `run` of the panel and of rows `t..t + T`, in bounds by the assertions above.
        unsafe {
            let mut dots = [_mm512_setzero_si512(); T];
            let w = p.codes.as_ptr().add(run * RUN * ROWS);
            let xs = codes.add(run * RUN);
            for step in 0..RUN / 4 {
                let w = _mm512_loadu_si512(w.add(step * 4 * ROWS).cast());
                for i in 0..T {
                    let four = _mm512_set1_epi32(xs.add(4 * (i * stride + step)).cast::<i32>().read_unaligned());
                    dots[i] = _mm512_dpbusd_epi32(dots[i], w, four);
                }
            }
            let scale = _mm512_loadu_ps(p.scales.as_ptr().add(run * ROWS));
            let min = _mm512_loadu_ps(p.mins.as_ptr().add(run * ROWS));
            for i in 0..T {
                let xscale = _mm512_set1_ps(*scales.add(i * stride + run * RUN / 32));
                let xsum = _mm512_set1_ps(*xsums.add(i * stride + run));
                sums[i] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[i]), _mm512_mul_ps(scale, xscale), sums[i]);
                sums[i] = _mm512_fmadd_ps(min, xsum, sums[i]);
            }
        }
    }
    for (i, s) in sums.into_iter().enumerate() {
        // SAFETY: the sixteen values of token `t + i`.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr().add((t + i) * ROWS), s) };
    }
}
