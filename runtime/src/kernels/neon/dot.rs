//! Panels on ARM processors with dot products (FEAT_DotProd: four byte products a lane) and with
//! products of small matrices (FEAT_I8MM: two rows by two tokens, eight columns at a time).
//!
//! The intrinsics are not stable yet, so each instruction is one line of assembly. Codes below 128
//! are signed as they are; eight-bit codes are made signed by flipping their top bit, which also
//! makes their minimum zero.

use super::super::input::Rows;
use super::super::panel::{Panel, ROWS};
use std::arch::aarch64::*;
use std::arch::asm;

/// `acc[i] += Σ a[4 i + j] · b[4 i + j]`, j in 0..4.
#[inline]
#[target_feature(enable = "neon,dotprod")]
pub(super) fn sdot(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction on registers; the function is compiled only where it exists.
    unsafe {
        asm!("sdot {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// `acc [2, 2] += a [2, 8] · b [2, 8]ᵀ`.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn smmla(mut acc: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe {
        asm!("smmla {0:v}.4s, {1:v}.16b, {2:v}.16b", inout(vreg) acc, in(vreg) a, in(vreg) b,
            options(pure, nomem, nostack, preserves_flags));
    }
    acc
}

/// The mask that makes a panel's codes signed.
#[inline]
#[target_feature(enable = "neon")]
fn flip(p: &Panel) -> uint8x16_t {
    vdupq_n_u8(if p.bits == 8 { 0x80 } else { 0 })
}

fn check(p: &Panel, x: Rows<'_>, out: &[f32]) {
    let runs = x.k / p.run;
    assert!(p.codes.len() >= x.k * ROWS && p.scales.len() >= runs * ROWS && p.mins.len() >= runs * ROWS);
    assert!(out.len() >= x.n() * ROWS);
}

/// `out [n, 16] = x · panelᵀ`, as [`super::super::panel::product`], with dot products.
#[target_feature(enable = "neon,dotprod")]
pub(super) fn product_dot(p: &Panel, x: Rows<'_>, out: &mut [f32]) {
    check(p, x, out);
    for t in 0..x.n() {
        token(p, x, t, out);
    }
}

/// The sixteen rows times token `t`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn token(p: &Panel, x: Rows<'_>, t: usize, out: &mut [f32]) {
    let (row, flip) = (x.row(t), flip(p));
    let mut sums = [vdupq_n_f32(0.0); 4];
    for run in 0..x.k / p.run {
        let mut dots = [vdupq_n_s32(0); 4];
        for step in run * p.run / 4..(run + 1) * p.run / 4 {
            let four = &row.codes[4 * step..4 * step + 4];
            let four = vreinterpretq_s8_s32(vdupq_n_s32(i32::from_le_bytes([four[0], four[1], four[2], four[3]])));
            for (q, dot) in dots.iter_mut().enumerate() {
                // SAFETY: four rows of step `step < k / 4`; the panel holds `k · 16` codes.
                let w = unsafe { vld1q_u8(p.codes.as_ptr().add(step * 4 * ROWS + 16 * q)) };
                *dot = sdot(*dot, vreinterpretq_s8_u8(veorq_u8(w, flip)), four);
            }
        }
        let (scale, sum) = (row.scales[run * p.run / 32], row.sums(p.run)[run]);
        for (q, (s, dot)) in sums.iter_mut().zip(dots).enumerate() {
            let at = run * ROWS + 4 * q;
            // SAFETY: four of the run's sixteen scales and minima.
            let (d, min) = unsafe { (vld1q_f32(p.scales.as_ptr().add(at)), vld1q_f32(p.mins.as_ptr().add(at))) };
            *s = vfmaq_f32(*s, vcvtq_f32_s32(dot), vmulq_n_f32(d, scale));
            if p.bits < 8 {
                *s = vfmaq_n_f32(*s, min, sum);
            }
        }
    }
    for (out, s) in out[t * ROWS..(t + 1) * ROWS].chunks_exact_mut(4).zip(sums) {
        // SAFETY: four values.
        unsafe { vst1q_f32(out.as_mut_ptr(), s) };
    }
}

/// As [`product_dot`], with products of small matrices, two tokens at a time.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(super) fn product_i8mm(p: &Panel, x: Rows<'_>, out: &mut [f32]) {
    check(p, x, out);
    for t in (0..x.n() / 2 * 2).step_by(2) {
        two_tokens(p, x, t, out);
    }
    if x.n() % 2 == 1 {
        token(p, x, x.n() - 1, out);
    }
}

/// The sixteen rows, as eight pairs, times tokens `t` and `t + 1`.
#[inline]
#[target_feature(enable = "neon,i8mm")]
fn two_tokens(p: &Panel, x: Rows<'_>, t: usize, out: &mut [f32]) {
    const PAIRS: usize = ROWS / 2;
    let (rows, flip) = ([x.row(t), x.row(t + 1)], flip(p));
    let mut sums = [vdupq_n_f32(0.0); PAIRS];
    for run in 0..x.k / p.run {
        let mut dots = [vdupq_n_s32(0); PAIRS];
        for eight in run * p.run / 8..(run + 1) * p.run / 8 {
            let of = |r: usize| rows[r].codes[8 * eight..8 * eight + 8].as_ptr().cast();
            // SAFETY: eight codes of each row.
            let tokens = unsafe { vcombine_s8(vld1_s8(of(0)), vld1_s8(of(1))) };
            for q in 0..4 {
                // SAFETY: four rows of steps `2 eight` and `2 eight + 1`, both below `k / 4`.
                let [a, b] =
                    [0, 1].map(|i| unsafe { vld1q_u8(p.codes.as_ptr().add((2 * eight + i) * 4 * ROWS + 16 * q)) });
                // Four columns of a row beside its next four.
                let (a, b) = (vreinterpretq_u32_u8(veorq_u8(a, flip)), vreinterpretq_u32_u8(veorq_u8(b, flip)));
                dots[2 * q] = smmla(dots[2 * q], vreinterpretq_s8_u32(vzip1q_u32(a, b)), tokens);
                dots[2 * q + 1] = smmla(dots[2 * q + 1], vreinterpretq_s8_u32(vzip2q_u32(a, b)), tokens);
            }
        }
        // A register holds [row a · t, row a · t + 1, row b · t, row b · t + 1].
        let pair = |v: [f32; 2]| {
            let v = vset_lane_f32::<1>(v[1], vdup_n_f32(v[0]));
            vcombine_f32(v, v)
        };
        let scale = pair(rows.map(|r| r.scales[run * p.run / 32]));
        let sum = pair(rows.map(|r| r.sums(p.run)[run]));
        for q in 0..4 {
            let at = run * ROWS + 4 * q;
            // SAFETY: four of the run's sixteen scales and minima.
            let (d, min) = unsafe { (vld1q_f32(p.scales.as_ptr().add(at)), vld1q_f32(p.mins.as_ptr().add(at))) };
            for (i, (d, min)) in [(vzip1q_f32(d, d), vzip1q_f32(min, min)), (vzip2q_f32(d, d), vzip2q_f32(min, min))]
                .into_iter()
                .enumerate()
            {
                let s = &mut sums[2 * q + i];
                *s = vfmaq_f32(*s, vcvtq_f32_s32(dots[2 * q + i]), vmulq_f32(d, scale));
                if p.bits < 8 {
                    *s = vfmaq_f32(*s, min, sum);
                }
            }
        }
    }
    for (i, s) in sums.into_iter().enumerate() {
        let mut four = [0.0; 4];
        // SAFETY: four values.
        unsafe { vst1q_f32(four.as_mut_ptr(), s) };
        let (first, second) = (t * ROWS + 2 * i, (t + 1) * ROWS + 2 * i);
        (out[first], out[second], out[first + 1], out[second + 1]) = (four[0], four[1], four[2], four[3]);
    }
}
