//! Products of weight rows with turned activations ([`super::tokens`]), eight tokens in a vector.
//!
//! Floats take one fused multiply-add for eight products. 16-bit integers take `madd` and an addition for sixteen,
//! which AVX2 processors do at twice that rate; eight-bit weights are widened, because the product of bytes
//! (`maddubs`) would need their signs moved and its pairs added up by a second multiplication.

use super::int8_x86::{ahead, transpose};
mod twelve;

use super::int16_x86::{halves, rounded, rounded_to};
use super::tokens::{BLOCK, Blocks, WideTile};
use super::wide::{RUN, WEIGHT};
use conpet_formats::quant::q8_0::BlockQ8_0;
use conpet_formats::quant::{self, QuantType};
use std::arch::x86_64::*;
use std::hint::black_box;
use std::ops::Range;

/// Columns that are multiplied with all rows before the next ones: sixteen tokens of them fit into an L1 cache.
const DEPTH: usize = 384;
/// The same in runs of 16-bit integers.
const RUNS: usize = 16;

/// Rows that are multiplied with two vectors of tokens: 12 of 16 registers hold sums.
const FEW: usize = 6;
/// Rows that are multiplied with one vector of tokens.
const ALL: usize = 2 * FEW;

/// Calls a micro-kernel for all rows, and for blocks of tokens with as many vectors as they fill.
macro_rules! tiles {
    ($micro:ident, $twelve:path, $n:expr, $rows:expr, |$r:ident, $b:ident| $($arg:expr),*) => {
        for $b in 0..$n.div_ceil(BLOCK) {
            let (tokens, mut $r) = ($n - $b * BLOCK, 0);
            let two = tokens > 8;
            while $r < $rows {
                let rows = ($rows - $r).min(if two { FEW } else { ALL });
                match (two, rows) {
                    (true, 6) if tokens <= 12 => $twelve($($arg),*),
                    (true, 6) => $micro::<6, 2>($($arg),*),
                    (true, 5) => $micro::<5, 2>($($arg),*),
                    (true, 4) => $micro::<4, 2>($($arg),*),
                    (true, 3) => $micro::<3, 2>($($arg),*),
                    (true, 2) => $micro::<2, 2>($($arg),*),
                    (true, _) => $micro::<1, 2>($($arg),*),
                    (_, 12) => $micro::<12, 1>($($arg),*),
                    (_, 6..) => $micro::<6, 1>($($arg),*),
                    (_, 3..) => $micro::<3, 1>($($arg),*),
                    (_, _) => $micro::<1, 1>($($arg),*),
                }
                $r += match (two, rows) {
                    (true, _) | (_, 12) => rows,
                    (_, 6..) => 6,
                    (_, 3..) => 3,
                    (_, _) => 1,
                };
            }
        }
    };
}

/// `c [rows, pitch] = w [rows, k] · xᵀ`, as [`Blocks::product`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn product(w: &[f32], rows: usize, x: Blocks<'_>, c: &mut [f32]) {
    assert!(w.len() >= rows * x.k && c.len() >= rows * x.pitch());
    // Sixteen tokens alone leave their block in the cache anyway, and long pieces of rows are fetched faster.
    let depth = if x.n <= BLOCK { x.k } else { DEPTH };
    for from in (0..x.k).step_by(depth) {
        let columns = from..x.k.min(from + depth);
        tiles!(micro, twelve::floats, x.n, rows, |r, b| w, r, x, b, columns.clone(), c);
    }
}

/// Rows `r..r + R` times `V` vectors of the tokens of a block. Every sum is taken over columns in order, one fused
/// multiply-add after another, whatever `R` and `V` are.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro<const R: usize, const V: usize>(
    w: &[f32],
    r: usize,
    x: Blocks<'_>,
    b: usize,
    columns: Range<usize>,
    c: &mut [f32],
) {
    let (k, ldc, block) = (x.k, x.pitch(), x.block(b));
    assert!(columns.end <= k && w.len() >= (r + R) * k && block.len() >= k * BLOCK);
    assert!(V <= 2 && (b + 1) * BLOCK <= ldc && c.len() >= (r + R) * ldc);
    // SAFETY: rows `r..r + R` of `w` and `c`, block `b` of `x` and `c`: in bounds by the assertions above. A
    // prefetch of an address that is not mapped does nothing.
    unsafe {
        let c = c.as_mut_ptr().add(r * ldc + b * BLOCK);
        let mut sums = [[_mm256_setzero_ps(); V]; R];
        if columns.start > 0 {
            for (i, s) in sums.iter_mut().enumerate() {
                for (v, s) in s.iter_mut().enumerate() {
                    *s = _mm256_loadu_ps(c.add(i * ldc + 8 * v));
                }
            }
        }
        // A pointer for each three rows: an address can be a pointer and up to twice the distance of rows, so that
        // none is computed for a row alone.
        let mut threes = [w.as_ptr().add(r * k + columns.start); ALL / 3];
        for (g, p) in threes.iter_mut().enumerate() {
            *p = p.wrapping_add(3 * g * k);
        }
        let (mut x, end) = (block.as_ptr().add(columns.start * BLOCK), block.as_ptr().add(columns.end * BLOCK));
        while x < end {
            // The same columns of the rows after these.
            for i in 0..R {
                _mm_prefetch::<_MM_HINT_T0>(threes[i / 3].wrapping_add((R + i % 3) * k).cast());
            }
            let stop = end.min(x.wrapping_add(16 * BLOCK));
            while x < stop {
                let mut xs = [_mm256_setzero_ps(); V];
                for (v, xs) in xs.iter_mut().enumerate() {
                    *xs = _mm256_loadu_ps(x.add(8 * v));
                }
                for (i, s) in sums.iter_mut().enumerate() {
                    let w = _mm256_broadcast_ss(&*threes[i / 3].add(i % 3 * k));
                    for (s, x) in s.iter_mut().zip(xs) {
                        *s = _mm256_fmadd_ps(w, x, *s);
                    }
                    if i % 3 == 2 || i == R - 1 {
                        threes[i / 3] = threes[i / 3].wrapping_add(1);
                    }
                }
                x = x.add(BLOCK);
            }
        }
        for (i, s) in sums.into_iter().enumerate() {
            for (v, s) in s.into_iter().enumerate() {
                _mm256_storeu_ps(c.add(i * ldc + 8 * v), s);
            }
        }
    }
}

/// `c [rows, pitch] = w · xᵀ` in 16-bit integers, as [`Blocks::product_wide`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn product_wide(w: &WideTile, rows: usize, x: Blocks<'_>, c: &mut [f32]) {
    assert!(c.len() >= rows * x.pitch());
    let all = x.k / RUN;
    for from in (0..all).step_by(RUNS) {
        let runs = from..all.min(from + RUNS);
        tiles!(micro_wide, twelve::wide, x.n, rows, |r, b| w, r, x, b, runs.clone(), c);
    }
}

/// As [`micro`]; sums are added run by run.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn micro_wide<const R: usize, const V: usize>(
    w: &WideTile,
    r: usize,
    x: Blocks<'_>,
    b: usize,
    runs: Range<usize>,
    c: &mut [f32],
) {
    let (k, ldc, block) = (x.k, x.pitch(), x.block(b));
    let (all, (w, scales, rows)) = (k / RUN, w.parts());
    assert!(runs.end <= all && r + R <= rows && w.len() >= rows * k && scales.len() >= rows * all);
    assert!(block.len() >= (k / 2 + all) * BLOCK);
    assert!(V <= 2 && (b + 1) * BLOCK <= ldc && c.len() >= (r + R) * ldc);
    // A count that the compiler does not know: it would unroll the loop and reorder the additions.
    let words = black_box(RUN / 2 * BLOCK);
    // SAFETY: rows `r..r + R` of `w` and `c`, block `b` of `x` and `c`: in bounds by the assertions above, as
    // `words` are the sixteen pairs of a run.
    unsafe {
        let xs = block.as_ptr().add(k / 2 * BLOCK);
        let c = c.as_mut_ptr().add(r * ldc + b * BLOCK);
        for run in runs {
            let mut dots = [[_mm256_setzero_si256(); V]; R];
            let (mut w, mut x) = (w.as_ptr().add((run * rows + r) * RUN), block.as_ptr().add(run * RUN / 2 * BLOCK));
            let end = x.add(words);
            while x != end {
                // Two pairs at a time.
                for pair in 0..2 {
                    let mut xv = [_mm256_setzero_si256(); V];
                    for (v, xv) in xv.iter_mut().enumerate() {
                        *xv = _mm256_loadu_si256(x.add(pair * BLOCK + 8 * v).cast());
                    }
                    for (i, dots) in dots.iter_mut().enumerate() {
                        let w = _mm256_set1_epi32(w.add(i * RUN + 2 * pair).cast::<i32>().read_unaligned());
                        for (dot, x) in dots.iter_mut().zip(xv) {
                            *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(w, x));
                        }
                    }
                }
                (w, x) = (w.wrapping_add(4), x.add(2 * BLOCK));
            }
            for (i, dots) in dots.into_iter().enumerate() {
                let scale = _mm256_broadcast_ss(&scales[run * rows + r + i]);
                for (v, dot) in dots.into_iter().enumerate() {
                    let c = c.add(i * ldc + 8 * v);
                    let scale = _mm256_mul_ps(scale, _mm256_loadu_ps(xs.add(run * BLOCK + 8 * v)));
                    let before = if run == 0 { _mm256_setzero_ps() } else { _mm256_loadu_ps(c) };
                    _mm256_storeu_ps(c, _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), scale, before));
                }
            }
        }
    }
}

/// The largest magnitude of 32 numbers of type F16; NaN if one is not finite.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn largest(bytes: &[u8; 2 * RUN]) -> f32 {
    let magnitude = _mm256_set1_epi16(0x7fff);
    // SAFETY: 64 bytes.
    let [a, b] = [0, 32].map(|at| unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) });
    // Without their signs, numbers are ordered as their bits are.
    let most = _mm256_max_epu16(_mm256_and_si256(a, magnitude), _mm256_and_si256(b, magnitude));
    let most = _mm_max_epu16(_mm256_castsi256_si128(most), _mm256_extracti128_si256::<1>(most));
    let ones = _mm_set1_epi16(-1);
    let most = _mm_xor_si128(_mm_minpos_epu16(_mm_xor_si128(most, ones)), ones);
    let value = _mm_cvtss_f32(_mm_cvtph_ps(most));
    if value.is_finite() { value } else { f32::NAN }
}

/// Unpacks rows, like [`WideTile::unpack`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn unpack(tile: &mut WideTile, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
    let runs = k / RUN;
    let (codes, scales) = tile.reserve(rows, k);
    let codes = codes.as_chunks_mut::<RUN>().0;
    if ty == QuantType::Q8_0 {
        let blocks = quant::blocks::<BlockQ8_0>(bytes).unwrap_or_default();
        for (r, blocks) in blocks.chunks_exact(runs).enumerate() {
            for (run, block) in blocks.iter().enumerate() {
                ahead(std::slice::from_ref(block));
                let at = run * rows + r;
                // SAFETY: 32 codes here and there.
                unsafe {
                    let (q, to) = (block.qs.as_ptr().cast(), codes[at].as_mut_ptr().cast());
                    _mm256_storeu_si256(to, _mm256_cvtepi8_epi16(_mm_loadu_si128(q)));
                    _mm256_storeu_si256(to.add(1), _mm256_cvtepi8_epi16(_mm_loadu_si128(q.add(1))));
                }
                let d = _mm_cvtsi32_si128(i32::from(u16::from_le_bytes(block.d)));
                scales[at] = _mm_cvtss_f32(_mm_cvtph_ps(d));
            }
        }
        return;
    }
    for (r, row) in bytes.as_chunks::<{ 2 * RUN }>().0.chunks_exact(runs).enumerate() {
        for (run, bytes) in row.iter().enumerate() {
            ahead(bytes);
            let (at, v) = (run * rows + r, halves(ty, bytes));
            let (q, scale) =
                if ty == QuantType::F16 { rounded_to(v, largest(bytes), WEIGHT) } else { rounded(v, WEIGHT) };
            for (j, q) in q.into_iter().enumerate() {
                // SAFETY: sixteen of 32 codes.
                unsafe { _mm256_storeu_si256(codes[at].as_mut_ptr().add(16 * j).cast(), q) };
            }
            scales[at] = scale;
        }
    }
}

/// Stores `c [rows, pitch]` turned back, `out [n, rows]` with rows `ldo` apart.
///
/// # Safety
/// * `rows` numbers may be written at each of `out + t · ldo`, `t` below `n`.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn store(c: &[f32], pitch: usize, rows: usize, n: usize, out: *mut f32, ldo: usize) {
    assert!(n <= pitch && c.len() >= rows * pitch);
    let whole = rows / 8 * 8;
    for t in (0..n).step_by(8) {
        for r in (0..whole).step_by(8) {
            let mut tile = [_mm256_setzero_si256(); 8];
            for (i, v) in tile.iter_mut().enumerate() {
                // SAFETY: row `r + i < rows`, columns `t..t + 8 <= pitch`, which is a multiple of eight.
                *v = unsafe { _mm256_loadu_si256(c.as_ptr().add((r + i) * pitch + t).cast()) };
            }
            for (i, v) in transpose(tile).into_iter().enumerate().take(n - t) {
                // SAFETY: eight of the numbers of token `t + i < n`, by this function's contract.
                unsafe { _mm256_storeu_si256(out.add((t + i) * ldo + r).cast(), v) };
            }
        }
        for r in whole..rows {
            for i in t..n.min(t + 8) {
                // SAFETY: as above.
                unsafe { *out.add(i * ldo + r) = c[r * pitch + i] };
            }
        }
    }
}
