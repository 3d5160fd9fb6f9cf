//! NEON: four values at a time, on every 64-bit ARM; integer products use the extensions that the processor has
//! ([`dot`]).

mod dot;

use super::Gemm;
use super::input::{self, Row, RowMut, Rows};
use super::math;
use super::naive::Naive;
use super::panel::{self, Panel};
use super::tokens::{self, Blocks, WideTile};
use super::wide::{self, WidePanel, WideRows};
use conpet_formats::model_spec::Activation;
use conpet_formats::quant::{self, Block, QuantType};
use conpet_formats::with_block;
use half::f16;
use std::arch::aarch64::*;

/// Proof that the processor has NEON, and which of its byte products.
#[derive(Debug, Clone, Copy)]
pub(super) struct Neon {
    bytes: Bytes,
}

/// The instructions that multiply bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bytes {
    /// Pairs of products in 16 bits.
    Widened,
    /// FEAT_DotProd.
    Dot,
    /// FEAT_I8MM, besides dot products.
    Matrix,
}

impl Neon {
    /// Every form this processor has, slowest first.
    pub(super) fn all() -> Vec<Self> {
        let neon = std::arch::is_aarch64_feature_detected!("neon");
        let dot = neon && std::arch::is_aarch64_feature_detected!("dotprod");
        let matrix = dot && std::arch::is_aarch64_feature_detected!("i8mm");
        [(neon, Bytes::Widened), (dot, Bytes::Dot), (matrix, Bytes::Matrix)]
            .into_iter()
            .filter_map(|(there, bytes)| there.then_some(Self { bytes }))
            .collect()
    }

    pub(super) fn name(self) -> &'static str {
        match self.bytes {
            Bytes::Widened => "neon",
            Bytes::Dot => "dotprod",
            Bytes::Matrix => "i8mm",
        }
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

    // Pairs of 16-bit integers are multiplied no faster than floats here: `Kernels::wide` is false.
    pub(super) fn round_wide(self, x: &[f32; wide::RUN], limit: f32, codes: &mut [i16; wide::RUN]) -> f32 {
        wide::round(x, limit, codes)
    }

    pub(super) fn unpack_wide(self, p: &mut WidePanel, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        p.unpack(ty, bytes, rows, k);
    }

    pub(super) fn product_wide(self, p: &WidePanel, x: WideRows<'_>, out: &mut [f32]) {
        p.product(x, out);
    }

    // Activations are never turned here: `Kernels::form`.
    pub(super) fn product_turned(self, w: &[f32], rows: usize, x: Blocks<'_>, c: &mut [f32]) {
        x.product(w, rows, c);
    }

    pub(super) fn unpack_tile(self, tile: &mut WideTile, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        tile.unpack(ty, bytes, rows, k);
    }

    pub(super) fn product_turned_wide(self, w: &WideTile, rows: usize, x: Blocks<'_>, c: &mut [f32]) {
        x.product_wide(w, rows, c);
    }

    /// Stores `c [rows, pitch]` turned back.
    ///
    /// # Safety
    /// * `rows` numbers may be written at each of `out + t · ldo`, `t` below `n`.
    pub(super) unsafe fn store_turned(self, c: &[f32], pitch: usize, rows: usize, n: usize, out: *mut f32, ldo: usize) {
        // SAFETY: by this function's contract.
        unsafe { tokens::store(c, pitch, rows, n, out, ldo) }
    }

    pub(super) fn product(self, p: &Panel, x: Rows<'_>, out: &mut [f32]) {
        // SAFETY: a value of `Neon` exists only if `all` found what it says.
        unsafe {
            match (self.bytes, p.run, p.bits) {
                (Bytes::Matrix, _, _) => dot::product_i8mm(p, x, out),
                (Bytes::Dot, _, _) => dot::product_dot(p, x, out),
                (_, 16, 7) => product::<16, 1>(p, x, out),
                (_, 16, _) => product::<16, 4>(p, x, out),
                (_, _, 0..=5) => product::<32, 8>(p, x, out),
                (_, _, 6) => product::<32, 4>(p, x, out),
                (_, _, 7) => product::<32, 1>(p, x, out),
                (_, _, _) => product::<32, 2>(p, x, out),
            }
        }
    }

    pub(super) fn gemv_int8(self, ty: QuantType, bytes: &[u8], x: Rows<'_>, y: &mut [f32]) {
        with_block!(ty, B => {
            let rows = quant::blocks::<B>(bytes).unwrap_or_default().chunks_exact(x.k / ty.block_len());
            for (y, blocks) in y.iter_mut().zip(rows) {
                // SAFETY: a value of `Neon` exists only if `all` found what it says.
                *y = unsafe {
                    match self.bytes {
                        Bytes::Widened => row(blocks, x.row(0), |acc, w, x| widened(acc, w, x)),
                        _ => row(blocks, x.row(0), |acc, w, x| dot::sdot(acc, w, x)),
                    }
                };
            }
        }, float => unreachable!("{} is not made of blocks", ty.name()));
    }

    pub(super) fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        // SAFETY: a value of `Neon` exists only if `all` found neon.
        unsafe { dot(a, b) }
    }

    pub(super) fn axpy_f32(self, acc: &mut [f32], a: f32, v: &[f32]) {
        acc.iter_mut().zip(v).for_each(|(o, v)| *o = a.mul_add(*v, *o));
    }

    pub(super) fn softmax(self, x: &mut [f32]) {
        math::softmax(x);
    }

    pub(super) fn layer_norm(self, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        math::layer_norm(x, weight, bias, eps);
    }

    pub(super) fn gate_mul(self, activation: Activation, gate: &mut [f32], up: &[f32]) {
        math::gate_mul(activation, gate, up);
    }

    pub(super) fn activate(self, activation: Activation, x: &mut [f32]) {
        math::activate(activation, x);
    }

    pub(super) fn soft_cap(self, x: &mut [f32], cap: f32) {
        math::soft_cap(x, cap);
    }

    /// `c = a · b`, or added to it; shapes were checked by [`Gemm::check`].
    pub(super) fn gemm(self, g: Gemm<'_>, c: &mut [f32], ldc: usize) {
        for r in (0..g.rows).step_by(GEMM_ROWS) {
            for j in (0..g.cols).step_by(8) {
                // SAFETY: a value of `Neon` exists only if `all` found neon.
                unsafe {
                    match (g.rows - r).min(GEMM_ROWS) {
                        8 => gemm_micro::<8>(&g, r, j, c, ldc),
                        4.. => {
                            gemm_micro::<4>(&g, r, j, c, ldc);
                            (r + 4..g.rows.min(r + GEMM_ROWS)).for_each(|r| gemm_micro::<1>(&g, r, j, c, ldc));
                        }
                        _ => (r..g.rows).for_each(|r| gemm_micro::<1>(&g, r, j, c, ldc)),
                    }
                }
            }
        }
    }

    pub(super) fn transpose(self, x: &[f32], ldx: usize, rows: usize, cols: usize, out: &mut [f32], ldo: usize) {
        Naive.transpose(x, ldx, rows, cols, out, ldo);
    }

    pub(super) fn widen(self, x: &[f16], out: &mut [f32]) {
        Naive.widen(x, out);
    }

    pub(super) fn softmax_step(self, x: &mut [f32], max: f32) -> (f32, f32) {
        math::softmax_step(x, max)
    }
}

/// Rows multiplied with two vectors of columns in registers.
const GEMM_ROWS: usize = 8;

#[inline]
#[target_feature(enable = "neon")]
fn gemm_micro<const R: usize>(g: &Gemm<'_>, r: usize, j: usize, c: &mut [f32], ldc: usize) {
    // SAFETY: rows `r..r + R` of `a` and `c`, columns `j..j + 8` of `b` and `c`, all of `k`: in bounds
    // by `Gemm::check`, which the caller of `gemm` has run.
    unsafe {
        let mut sums = [[vdupq_n_f32(0.0); 2]; R];
        let (a, b, c) = (g.a.as_ptr().add(r * g.lda), g.b.as_ptr().add(j), c.as_mut_ptr().add(r * ldc + j));
        if g.add {
            for (i, s) in sums.iter_mut().enumerate() {
                *s = [vld1q_f32(c.add(i * ldc)), vld1q_f32(c.add(i * ldc + 4))];
            }
        }
        for k in 0..g.k {
            let (b0, b1) = (vld1q_f32(b.add(k * g.ldb)), vld1q_f32(b.add(k * g.ldb + 4)));
            for (i, s) in sums.iter_mut().enumerate() {
                let x = *a.add(i * g.lda + k);
                *s = [vfmaq_n_f32(s[0], b0, x), vfmaq_n_f32(s[1], b1, x)];
            }
        }
        for (i, s) in sums.into_iter().enumerate() {
            vst1q_f32(c.add(i * ldc), s[0]);
            vst1q_f32(c.add(i * ldc + 4), s[1]);
        }
    }
}

/// One run of eight rows, as [`panel::product`]: byte products are added in 16 bits as long as they cannot
/// overflow (`GROUP` steps of four columns), then in 32.
///
/// # Safety
/// * `w` points to `RUN / 4` steps of a panel, `x` to `RUN` codes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn run8<const RUN: usize, const GROUP: usize>(w: *const u8, x: *const u8, flip: uint8x16_t) -> [int32x4_t; 2] {
    let mut wide = [vdupq_n_s32(0); 4];
    for group in 0..RUN / 4 / GROUP {
        let mut pairs = [vdupq_n_s16(0); 4];
        for step in group * GROUP..(group + 1) * GROUP {
            // SAFETY: by this function's contract.
            unsafe {
                let four = vreinterpret_s8_u32(vdup_n_u32(x.add(4 * step).cast::<u32>().read_unaligned()));
                for half in 0..2 {
                    let w = veorq_u8(vld1q_u8(w.add(step * 4 * panel::ROWS + 16 * half)), flip);
                    let w = vreinterpretq_s8_u8(w);
                    pairs[2 * half] = vmlal_s8(pairs[2 * half], vget_low_s8(w), four);
                    pairs[2 * half + 1] = vmlal_s8(pairs[2 * half + 1], vget_high_s8(w), four);
                }
            }
        }
        for (wide, pairs) in wide.iter_mut().zip(pairs) {
            *wide = vpadalq_s16(*wide, pairs);
        }
    }
    [vpaddq_s32(wide[0], wide[1]), vpaddq_s32(wide[2], wide[3])]
}

#[inline]
#[target_feature(enable = "neon")]
fn product<const RUN: usize, const GROUP: usize>(p: &Panel, x: Rows<'_>, out: &mut [f32]) {
    const ROWS: usize = panel::ROWS;
    let runs = x.k / RUN;
    assert!(p.codes.len() >= x.k * ROWS && p.scales.len() >= runs * ROWS && p.mins.len() >= runs * ROWS);
    // Eight-bit codes are treated as signed, which makes their minimum zero.
    let signed = GROUP == 2;
    let flip = vdupq_n_u8(if signed { 0x80 } else { 0 });
    for (t, out) in out.chunks_exact_mut(ROWS).enumerate() {
        let x = x.row(t);
        let mut sums = [vdupq_n_f32(0.0); 4];
        for run in 0..runs {
            let (scale, sum) = (x.scales[run * RUN / 32], x.sums(RUN)[run]);
            for half in 0..2 {
                // SAFETY: run `run` of the panel, asserted above, and of the row.
                unsafe {
                    let w = p.codes.as_ptr().add(run * RUN * ROWS + 32 * half);
                    let dots = run8::<RUN, GROUP>(w, x.codes.as_ptr().add(run * RUN), flip);
                    for (q, dot) in dots.into_iter().enumerate() {
                        let (i, at) = (2 * half + q, run * ROWS + 8 * half + 4 * q);
                        let d = vmulq_n_f32(vld1q_f32(p.scales.as_ptr().add(at)), scale);
                        sums[i] = vfmaq_f32(sums[i], vcvtq_f32_s32(dot), d);
                        if !signed {
                            sums[i] = vfmaq_n_f32(sums[i], vld1q_f32(p.mins.as_ptr().add(at)), sum);
                        }
                    }
                }
            }
        }
        for (out, s) in out.chunks_exact_mut(4).zip(sums) {
            // SAFETY: four values.
            unsafe { vst1q_f32(out.as_mut_ptr(), s) };
        }
    }
}

/// Sixteen products of bytes, added by fours in some order. The sum of two fits 16 bits except for
/// `2 · 128 · 128`, which cannot occur because activations are at least -127.
#[inline]
#[target_feature(enable = "neon")]
fn widened(acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    let pairs = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    vpadalq_s16(acc, vmlal_s8(pairs, vget_high_s8(a), vget_high_s8(b)))
}

/// `row · x` for one token; the row is decoded block by block.
#[inline]
#[target_feature(enable = "neon")]
fn row<B: Block>(row: &[B], x: Row<'_>, dot: impl Fn(int32x4_t, int8x16_t, int8x16_t) -> int32x4_t) -> f32 {
    let len = B::LEN;
    assert_eq!(x.codes.len(), row.len() * len);
    let flip = vdupq_n_u8(if B::BITS == 8 { 0x80 } else { 0 });
    let (mut sums, mut minima) = (vdupq_n_f32(0.0), 0.0f32);
    for (b, block) in row.iter().enumerate() {
        let (mut codes, mut scale, mut min) = ([0u8; 256], [0.0f32; 16], [0.0f32; 16]);
        block.codes(&mut codes);
        block.scales::<quant::Portable>(&mut scale, &mut min);
        for j in (0..len).step_by(16) {
            let at = b * len + j;
            // SAFETY: 16 of the 256 codes and of the row's values, asserted above.
            let (w, xv) = unsafe { (vld1q_u8(codes.as_ptr().add(j)), vld1q_u8(x.codes.as_ptr().add(at))) };
            let (w, xv) = (vreinterpretq_s8_u8(veorq_u8(w, flip)), vreinterpretq_s8_u8(xv));
            let dot = dot(vdupq_n_s32(0), w, xv);
            sums = vfmaq_n_f32(sums, vcvtq_f32_s32(dot), scale[j / B::RUN] * x.scales[at / 32]);
            if B::BITS < 8 {
                minima += min[j / B::RUN] * x.sums16[at / 16];
            }
        }
    }
    vaddvq_f32(sums) + minima
}

#[inline]
#[target_feature(enable = "neon")]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [vdupq_n_f32(0.0); 2];
    let n = a.len() / 8 * 8;
    for at in (0..n).step_by(8) {
        for (j, s) in sums.iter_mut().enumerate() {
            // SAFETY: `at + 8 <= n`, within both slices, which are equally long.
            *s = unsafe { vfmaq_f32(*s, vld1q_f32(a.as_ptr().add(at + 4 * j)), vld1q_f32(b.as_ptr().add(at + 4 * j))) };
        }
    }
    let tail = a[n..].iter().zip(&b[n..]);
    tail.fold(vaddvq_f32(vaddq_f32(sums[0], sums[1])), |s, (a, b)| a.mul_add(*b, s))
}
