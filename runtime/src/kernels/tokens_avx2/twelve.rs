//! Nine to twelve tokens, times six rows: four of them share vectors, two rows in one, so that three vectors hold
//! what would take four. Every sum is the same as in the wider form.

use super::super::tokens::{BLOCK, Blocks, WideTile};
use super::super::wide::RUN;
use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

/// Rows that are multiplied together.
pub(super) const ROWS: usize = 6;

/// The low half of one vector and the high half of another.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn both(low: __m256, high: __m256) -> __m256 {
    _mm256_blend_ps::<0xf0>(low, high)
}

/// Sums of six rows: of eight tokens each, and of four tokens of two rows each.
type Sums = ([__m256; ROWS], [__m256; ROWS / 2]);

/// Loads sums from `c`, whose rows are `ldc` apart.
///
/// # Safety
/// * Twelve numbers are readable at each of six rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load(c: *const f32, ldc: usize) -> Sums {
    let (mut eight, mut four) = ([_mm256_setzero_ps(); ROWS], [_mm256_setzero_ps(); ROWS / 2]);
    // SAFETY: by this function's contract.
    unsafe {
        for (i, s) in eight.iter_mut().enumerate() {
            *s = _mm256_loadu_ps(c.add(i * ldc));
        }
        for (i, s) in four.iter_mut().enumerate() {
            *s = _mm256_loadu2_m128(c.add((2 * i + 1) * ldc + 8), c.add(2 * i * ldc + 8));
        }
    }
    (eight, four)
}

/// The reverse of [`load`].
///
/// # Safety
/// * Twelve numbers are writable at each of six rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn store((eight, four): Sums, c: *mut f32, ldc: usize) {
    // SAFETY: by this function's contract.
    unsafe {
        for (i, s) in eight.into_iter().enumerate() {
            _mm256_storeu_ps(c.add(i * ldc), s);
        }
        for (i, s) in four.into_iter().enumerate() {
            _mm256_storeu2_m128(c.add((2 * i + 1) * ldc + 8), c.add(2 * i * ldc + 8), s);
        }
    }
}

/// Rows `r..r + 6` of floats, as `micro`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn floats(w: &[f32], r: usize, x: Blocks<'_>, b: usize, columns: Range<usize>, c: &mut [f32]) {
    let (k, ldc, block) = (x.k, x.pitch(), x.block(b));
    assert!(columns.end <= k && w.len() >= (r + ROWS) * k && block.len() >= k * BLOCK);
    assert!((b + 1) * BLOCK <= ldc && c.len() >= (r + ROWS) * ldc);
    // SAFETY: rows `r..r + 6` of `w` and `c`, block `b` of `x` and `c`: in bounds by the assertions above. A
    // prefetch of an address that is not mapped does nothing.
    unsafe {
        let c = c.as_mut_ptr().add(r * ldc + b * BLOCK);
        let zero = ([_mm256_setzero_ps(); ROWS], [_mm256_setzero_ps(); ROWS / 2]);
        let (mut eight, mut four) = if columns.start > 0 { load(c, ldc) } else { zero };
        // A pointer for each three rows, as in `micro`.
        let first = w.as_ptr().add(r * k + columns.start);
        let mut threes = [first, first.add(3 * k)];
        let (mut x, end) = (block.as_ptr().add(columns.start * BLOCK), block.as_ptr().add(columns.end * BLOCK));
        while x < end {
            // The same columns of the rows after these.
            for i in 0..ROWS {
                _mm_prefetch::<_MM_HINT_T0>(threes[i / 3].wrapping_add((ROWS + i % 3) * k).cast());
            }
            let stop = end.min(x.wrapping_add(16 * BLOCK));
            while x < stop {
                let x8 = _mm256_loadu_ps(x);
                let x4 = _mm256_broadcast_ps(&*x.add(8).cast());
                for i in 0..ROWS / 2 {
                    let row = |r: usize| _mm256_broadcast_ss(&*threes[r / 3].add(r % 3 * k));
                    let (w0, w1) = (row(2 * i), row(2 * i + 1));
                    eight[2 * i] = _mm256_fmadd_ps(w0, x8, eight[2 * i]);
                    eight[2 * i + 1] = _mm256_fmadd_ps(w1, x8, eight[2 * i + 1]);
                    four[i] = _mm256_fmadd_ps(both(w0, w1), x4, four[i]);
                }
                threes = threes.map(|p| p.wrapping_add(1));
                x = x.add(BLOCK);
            }
        }
        store((eight, four), c, ldc);
    }
}

/// Rows `r..r + 6` of 16-bit integers, as `micro_wide`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn wide(w: &WideTile, r: usize, x: Blocks<'_>, b: usize, runs: Range<usize>, c: &mut [f32]) {
    let (k, ldc, block) = (x.k, x.pitch(), x.block(b));
    let (all, (w, scales, rows)) = (k / RUN, w.parts());
    assert!(runs.end <= all && r + ROWS <= rows && w.len() >= rows * k && scales.len() >= rows * all);
    assert!(block.len() >= (k / 2 + all) * BLOCK);
    assert!((b + 1) * BLOCK <= ldc && c.len() >= (r + ROWS) * ldc);
    // A count that the compiler does not know, as in `micro_wide`.
    let words = black_box(RUN / 2 * BLOCK);
    // SAFETY: rows `r..r + 6` of `w` and `c`, block `b` of `x` and `c`: in bounds by the assertions above, as
    // `words` are the sixteen pairs of a run.
    unsafe {
        let c = c.as_mut_ptr().add(r * ldc + b * BLOCK);
        let xs = block.as_ptr().add(k / 2 * BLOCK);
        for run in runs {
            let mut eight = [_mm256_setzero_si256(); ROWS];
            let mut four = [_mm256_setzero_si256(); ROWS / 2];
            let (mut w, mut x) = (w.as_ptr().add((run * rows + r) * RUN), block.as_ptr().add(run * RUN / 2 * BLOCK));
            let end = x.add(words);
            while x != end {
                let x8 = _mm256_loadu_si256(x.cast());
                let x4 = _mm256_broadcastsi128_si256(_mm_loadu_si128(x.add(8).cast()));
                for i in 0..ROWS / 2 {
                    let row = |r: usize| _mm256_set1_epi32(w.add(r * RUN).cast::<i32>().read_unaligned());
                    let (w0, w1) = (row(2 * i), row(2 * i + 1));
                    eight[2 * i] = _mm256_add_epi32(eight[2 * i], _mm256_madd_epi16(w0, x8));
                    eight[2 * i + 1] = _mm256_add_epi32(eight[2 * i + 1], _mm256_madd_epi16(w1, x8));
                    let two = _mm256_blend_epi32::<0xf0>(w0, w1);
                    four[i] = _mm256_add_epi32(four[i], _mm256_madd_epi16(two, x4));
                }
                (w, x) = (w.wrapping_add(2), x.add(BLOCK));
            }
            let zero = ([_mm256_setzero_ps(); ROWS], [_mm256_setzero_ps(); ROWS / 2]);
            let mut sums = if run > 0 { load(c, ldc) } else { zero };
            let xs8 = _mm256_loadu_ps(xs.add(run * BLOCK));
            let xs4 = _mm256_broadcast_ps(&*xs.add(run * BLOCK + 8).cast());
            for i in 0..ROWS / 2 {
                let row = |i: usize| _mm256_broadcast_ss(&scales[run * rows + r + i]);
                let (s0, s1) = (row(2 * i), row(2 * i + 1));
                let add = |sum: &mut __m256, dot, s, xs| {
                    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), _mm256_mul_ps(s, xs), *sum);
                };
                add(&mut sums.0[2 * i], eight[2 * i], s0, xs8);
                add(&mut sums.0[2 * i + 1], eight[2 * i + 1], s1, xs8);
                add(&mut sums.1[i], four[i], both(s0, s1), xs4);
            }
            store(sums, c, ldc);
        }
    }
}
