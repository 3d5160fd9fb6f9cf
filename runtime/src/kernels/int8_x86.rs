//! Integer products on x86-64, 256 bits at a time: the same code for three instruction sets.
//!
//! They differ in one operation, four byte products added into a 32-bit lane. AVX-VNNI and AVX-512 VNNI have
//! it; AVX2 builds it from `maddubs` (pairs of products, 16 bits) and `madd`, adding as many pairs in 16 bits
//! as cannot overflow: 8 of 4-bit codes, 4 of 5-bit codes, 2 of 6-bit codes. Eight-bit codes could overflow in
//! a single pair, so they are treated as signed: `|w| · (x · sign w)`.

mod vectors;

use super::input::{Row, RowMut, Rows};
use super::panel::{Panel, ROWS};
use conpet_formats::quant::{self, Block, Half, QuantType};
use conpet_formats::with_block;
use std::arch::x86_64::*;
use std::hint::black_box;
use vectors::Vectors;

/// Tokens multiplied together in registers.
const TOKENS: usize = 4;

/// How many bytes ahead weights are prefetched.
const AHEAD: usize = 4096;

/// Bytes from one step (four columns) of a panel to the next.
const STEP: usize = 4 * ROWS;

/// `[8 rows, 8 dwords]` to `[8 dwords, 8 rows]`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn transpose(r: [__m256i; 8]) -> [__m256i; 8] {
    let lo = |a, b| _mm256_unpacklo_epi32(a, b);
    let hi = |a, b| _mm256_unpackhi_epi32(a, b);
    let p = [lo(r[0], r[1]), hi(r[0], r[1]), lo(r[2], r[3]), hi(r[2], r[3])];
    let q = [lo(r[4], r[5]), hi(r[4], r[5]), lo(r[6], r[7]), hi(r[6], r[7])];
    let four = |p: [__m256i; 4]| {
        [
            _mm256_unpacklo_epi64(p[0], p[2]),
            _mm256_unpackhi_epi64(p[0], p[2]),
            _mm256_unpacklo_epi64(p[1], p[3]),
            _mm256_unpackhi_epi64(p[1], p[3]),
        ]
    };
    let (a, b) = (four(p), four(q));
    let mut out = [_mm256_setzero_si256(); 8];
    for i in 0..4 {
        out[i] = _mm256_permute2x128_si256::<0x20>(a[i], b[i]);
        out[i + 4] = _mm256_permute2x128_si256::<0x31>(a[i], b[i]);
    }
    out
}

/// # Safety
/// * `x` points to four codes.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn broadcast4(x: *const u8) -> __m256i {
    // SAFETY: four codes are readable by this function's contract.
    _mm256_set1_epi32(unsafe { x.cast::<i32>().read_unaligned() })
}

#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn hsum(v: __m256) -> f32 {
    let q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps::<1>(d, d)))
}

/// Rounds activations, as [`super::input::quantize`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quantize(x: &[f32], row: RowMut<'_>) {
    let (ones8, ones16) = (_mm256_set1_epi8(1), _mm256_set1_epi16(1));
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (run, x) in x.chunks_exact(32).enumerate() {
        let mut v = [_mm256_setzero_ps(); 4];
        let (mut most, mut poison) = (_mm256_setzero_ps(), _mm256_setzero_ps());
        for (j, v) in v.iter_mut().enumerate() {
            // SAFETY: eight of 32 values.
            *v = unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * j)) };
            most = _mm256_max_ps(_mm256_and_ps(*v, magnitude), most);
            // NaN where the number is not finite, which must not be rounded away.
            poison = _mm256_add_ps(poison, _mm256_sub_ps(*v, *v));
        }
        let m = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps::<1>(most));
        let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
        let max = _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps::<1>(m, m)));
        let inv = _mm256_set1_ps(if max > 0.0 { 127.0 / max } else { 0.0 });
        let d = max / 127.0 + hsum(poison);
        let q = v.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, inv)));
        let q = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        let q = _mm256_permutevar8x32_epi32(q, order);
        let sums = _mm256_madd_epi16(_mm256_maddubs_epi16(ones8, q), ones16);
        let codes = &mut row.codes[32 * run..32 * run + 32];
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().cast(), q) };
        let half = |s: __m128i| {
            let s = _mm_add_epi32(s, _mm_shuffle_epi32::<0b1110>(s));
            _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32::<0b01>(s)))
        };
        let (lo, hi) = (half(_mm256_castsi256_si128(sums)), half(_mm256_extracti128_si256::<1>(sums)));
        row.scales[run] = d;
        (row.sums16[2 * run], row.sums16[2 * run + 1]) = (d * lo as f32, d * hi as f32);
        row.sums32[run] = d * (lo + hi) as f32;
    }
}

/// Unpacks rows into a panel: what [`Panel::unpack`] makes of them, eight rows and 32 columns at a time.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn unpack(p: &mut Panel, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
    if rows < ROWS {
        return p.unpack::<F16c>(ty, bytes, rows, k, super::panel::interleave);
    }
    with_block!(ty, B => {
        let blocks = quant::blocks::<B>(bytes).unwrap_or_default();
        p.reserve::<B>(k);
        let per_row = k / B::LEN;
        unpack_half(p, &blocks[..8 * per_row], per_row, 0);
        unpack_half(p, &blocks[8 * per_row..], per_row, 1);
    }, float => unreachable!("{} is not made of blocks", ty.name()));
}

/// Eight rows of `per_row` blocks, to half `half` of a panel.
///
/// Loops rather than closures over arrays: those would not be inlined into a function with other features.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_half<B: Vectors>(p: &mut Panel, blocks: &[B], per_row: usize, half: usize) {
    let (per, runs, k) = (256 / B::LEN, 256 / B::RUN, per_row * B::LEN);
    assert!(half < 2 && blocks.len() == 8 * per_row && p.codes.len() >= k * ROWS);
    assert!(p.scales.len() >= k / B::RUN * ROWS && p.mins.len() >= k / B::RUN * ROWS);
    let (codes, scales, mins) = (p.codes.as_mut_ptr(), p.scales.as_mut_ptr(), p.mins.as_mut_ptr());
    for g in 0..per_row / per {
        let mut group = [&blocks[..0]; 8];
        let (mut scale, mut min) = ([[_mm256_setzero_ps(); 8]; 2], [[_mm256_setzero_ps(); 8]; 2]);
        for r in 0..8 {
            group[r] = &blocks[r * per_row + g * per..][..per];
            next_panel(group[r], 2 * size_of_val(blocks));
            // SAFETY: this function has AVX2, FMA and F16C.
            let (s, m) = unsafe { B::scales256(group[r]) };
            (scale[0][r], scale[1][r], min[0][r], min[1][r]) = (s[0], s[1], m[0], m[1]);
        }
        for which in 0..runs / 8 {
            // SAFETY: runs of this group, which the assertions leave room for.
            unsafe {
                let at = (g * runs + 8 * which) * ROWS + 8 * half;
                store_runs(scale[which], scales.add(at));
                store_runs(min[which], mins.add(at));
            }
        }
        for j in 0..8 {
            let mut rows = [_mm256_setzero_si256(); 8];
            for r in 0..8 {
                // SAFETY: this function has AVX2 and F16C; `j` counts the 32s of 256, of which a group is made.
                rows[r] = unsafe { group[r].get_unchecked(32 * j / B::LEN).codes32(j % (B::LEN / 32)) };
            }
            // SAFETY: 32 columns that the assertions leave room for.
            unsafe { store_columns(rows, codes.add((256 * g + 32 * j) * ROWS + 32 * half)) };
        }
    }
    // Blocks of 32 that do not fill 256.
    for b in per_row / per * per..per_row {
        let mut rows = [_mm256_setzero_si256(); 8];
        for r in 0..8 {
            let (mut scale, mut min) = ([0.0; 16], [0.0; 16]);
            let block = &blocks[r * per_row + b];
            block.scales::<F16c>(&mut scale, &mut min);
            // SAFETY: as above; a run that the assertions leave room for.
            unsafe {
                rows[r] = block.codes32(0);
                *scales.add(b * ROWS + 8 * half + r) = scale[0];
                *mins.add(b * ROWS + 8 * half + r) = min[0];
            }
        }
        // SAFETY: as above.
        unsafe { store_columns(rows, codes.add(32 * b * ROWS + 32 * half)) };
    }
}

/// Eight runs' values of eight rows, run after run.
///
/// # Safety
/// * Eight times eight numbers, [`ROWS`] apart, may be written from `out` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_runs(of_rows: [__m256; 8], out: *mut f32) {
    let mut rows = [_mm256_setzero_si256(); 8];
    for r in 0..8 {
        rows[r] = _mm256_castps_si256(of_rows[r]);
    }
    let runs = transpose(rows);
    for i in 0..8 {
        // SAFETY: by this function's contract.
        unsafe { _mm256_storeu_ps(out.add(i * ROWS), _mm256_castsi256_ps(runs[i])) };
    }
}

/// 32 codes of eight rows, four columns after another.
///
/// # Safety
/// * Eight times 32 bytes, [`STEP`] apart, may be written from `out` on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_columns(rows: [__m256i; 8], out: *mut u8) {
    let columns = transpose(rows);
    for i in 0..8 {
        // SAFETY: by this function's contract.
        unsafe { _mm256_storeu_si256(out.add(i * STEP).cast(), columns[i]) };
    }
}

/// The processor's own conversion. Only functions with F16C may use it; it is inlined into them.
struct F16c;

impl Half for F16c {
    #[inline(always)]
    fn f32(bytes: [u8; 2]) -> f32 {
        // SAFETY: this type is private, and named only in functions with F16C and in those inlined into them.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes))))) }
    }

    #[inline(always)]
    fn two(a: [u8; 2], b: [u8; 2]) -> (f32, f32) {
        // SAFETY: as above.
        unsafe {
            let both = _mm_cvtph_ps(_mm_cvtsi32_si128(i32::from_le_bytes([a[0], a[1], b[0], b[1]])));
            (_mm_cvtss_f32(both), _mm_cvtss_f32(_mm_movehdup_ps(both)))
        }
    }
}

/// An eight-bit code (0 to 255) as a signed byte, `w - 128`.
#[inline]
#[target_feature(enable = "avx2")]
fn signed(w: __m256i) -> __m256i {
    _mm256_xor_si256(w, _mm256_set1_epi8(-128))
}

/// `Σ |w| · (x · sign w)` in eight lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn signed_dot(w: __m256i, x: __m256i) -> __m256i {
    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
    _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))
}

/// AVX2's form of the operation.
#[derive(Clone, Copy)]
pub(super) struct Pairs;
/// AVX-VNNI's form of it.
#[derive(Clone, Copy)]
pub(super) struct Vnni256;
/// AVX-512 VNNI's form of it, on 256 bits.
#[derive(Clone, Copy)]
pub(super) struct Vnni512;

/// Prefetches what lies [`AHEAD`] bytes after `rows`: the hardware prefetcher stops at page boundaries, and a
/// base's weights span many pages.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn ahead<B>(rows: &[B]) {
    let start = rows.as_ptr().cast::<i8>();
    for at in (0..size_of_val(rows)).step_by(64) {
        // A prefetch of an address that is not mapped does nothing.
        _mm_prefetch::<_MM_HINT_T0>(start.wrapping_add(AHEAD + at));
    }
}

/// Asks for the same part of the next panel, `distance` bytes on: it comes while this one is multiplied.
#[inline]
#[target_feature(enable = "avx2")]
fn next_panel<B>(rows: &[B], distance: usize) {
    let start = rows.as_ptr().cast::<i8>();
    for at in (0..size_of_val(rows)).step_by(64) {
        // A prefetch of an address that is not mapped does nothing.
        _mm_prefetch::<_MM_HINT_T1>(start.wrapping_add(distance + at));
    }
}

/// Products of a batch with a panel.
macro_rules! batch {
    ($set:ident, $features:literal, signed: $signed:literal, $dots:item) => {
        impl $set {
            /// `out [n, 16] = x · panelᵀ`, as [`super::panel::product`].
            #[target_feature(enable = $features)]
            pub(super) fn product(p: &Panel, x: Rows<'_>, out: &mut [f32]) {
                let n = out.len() / ROWS;
                for half in 0..2 {
                    for t in (0..n).step_by(TOKENS) {
                        match (p.run, p.bits) {
                            (16, 0..=4) => Self::tokens::<16, 4>(p, half, x, t, out),
                            (16, 7) => Self::tokens::<16, 1>(p, half, x, t, out),
                            (16, _) => Self::tokens::<16, 2>(p, half, x, t, out),
                            (_, 0..=4) => Self::tokens::<32, 8>(p, half, x, t, out),
                            (_, 5) => Self::tokens::<32, 4>(p, half, x, t, out),
                            (_, 6) => Self::tokens::<32, 2>(p, half, x, t, out),
                            (_, 7) => Self::tokens::<32, 1>(p, half, x, t, out),
                            (_, _) => Self::tokens::<32, 0>(p, half, x, t, out),
                        }
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn tokens<const RUN: usize, const GROUP: usize>(p: &Panel, half: usize, x: Rows<'_>, t: usize, out: &mut [f32]) {
                match (out.len() / ROWS - t).min(TOKENS) {
                    4 => Self::micro::<RUN, GROUP, 4>(p, half, x, t, out),
                    3 => Self::micro::<RUN, GROUP, 3>(p, half, x, t, out),
                    2 => Self::micro::<RUN, GROUP, 2>(p, half, x, t, out),
                    _ => Self::micro::<RUN, GROUP, 1>(p, half, x, t, out),
                }
            }

            /// Eight rows times `T` tokens; sums are added run by run, whatever `T` is.
            #[inline]
            #[target_feature(enable = $features)]
            fn micro<const RUN: usize, const GROUP: usize, const T: usize>(
                p: &Panel,
                half: usize,
                x: Rows<'_>,
                t: usize,
                out: &mut [f32],
            ) {
                let runs = x.k / RUN;
                assert!(p.codes.len() >= x.k * ROWS && p.scales.len() >= runs * ROWS && p.mins.len() >= runs * ROWS);
                assert!(t + T <= x.n() && out.len() >= (t + T) * ROWS && half < 2);
                let first = x.row(t);
                let (codes, scales, xsums) = (first.codes.as_ptr(), first.scales.as_ptr(), first.sums(RUN).as_ptr());
                let stride = x.stride();
                let mut sums = [_mm256_setzero_ps(); T];
                for run in 0..runs {
                    // SAFETY: run `run` of the panel and of rows `t..t + T`, in bounds by the
                    // assertions above.
                    unsafe {
                        let w = p.codes.as_ptr().add(run * RUN * ROWS + 32 * half);
                        let dots = Self::dots::<RUN, GROUP, T>(w, codes.add(run * RUN), 4 * stride);
                        let scale = _mm256_loadu_ps(p.scales.as_ptr().add(run * ROWS + 8 * half));
                        let min = _mm256_loadu_ps(p.mins.as_ptr().add(run * ROWS + 8 * half));
                        for i in 0..T {
                            let xs = _mm256_broadcast_ss(&*scales.add(i * stride + run * RUN / 32));
                            sums[i] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[i]), _mm256_mul_ps(scale, xs), sums[i]);
                            if !($signed && GROUP == 0) {
                                let sum = _mm256_broadcast_ss(&*xsums.add(i * stride + run));
                                sums[i] = _mm256_fmadd_ps(min, sum, sums[i]);
                            }
                        }
                    }
                }
                for (i, s) in sums.into_iter().enumerate() {
                    // SAFETY: eight of the sixteen values of token `t + i`.
                    unsafe { _mm256_storeu_ps(out.as_mut_ptr().add((t + i) * ROWS + 8 * half), s) };
                }
            }

            $dots
        }
    };
}

/// Scales of group `g` of 256 weights, multiplied by those of the activations; adds the contribution of the minima.
///
/// # Safety
/// * It is inlined into a function with AVX2, FMA and F16C.
#[inline(always)]
unsafe fn group_scales<B: Vectors, const SIGNED: bool>(
    blocks: &[B],
    x: Row<'_>,
    g: usize,
    minima: &mut __m256,
) -> [f32; 16] {
    let (xs, sums32, sums16) =
        (&x.scales[8 * g..8 * g + 8], &x.sums32[8 * g..8 * g + 8], &x.sums16[16 * g..16 * g + 16]);
    let mut out = [0.0; 16];
    // SAFETY: eight values at a time of the slices above and of `out`.
    unsafe {
        let (scale, min) = B::scales256(blocks);
        let xs = _mm256_loadu_ps(xs.as_ptr());
        if B::RUN == 16 {
            for i in 0..2 {
                let half = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3);
                let two = _mm256_permutevar8x32_ps(xs, _mm256_add_epi32(half, _mm256_set1_epi32(4 * i as i32)));
                _mm256_storeu_ps(out.as_mut_ptr().add(8 * i), _mm256_mul_ps(scale[i], two));
                *minima = _mm256_fmadd_ps(min[i], _mm256_loadu_ps(sums16.as_ptr().add(8 * i)), *minima);
            }
        } else {
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_mul_ps(scale[0], xs));
            if !(SIGNED && B::BITS == 8) {
                *minima = _mm256_fmadd_ps(min[0], _mm256_loadu_ps(sums32.as_ptr()), *minima);
            }
        }
    }
    out
}

/// Products of one token with rows as they lie in the map.
macro_rules! single {
    ($set:ident, $features:literal, signed: $signed:literal, $dot:item) => {
        impl $set {
            /// `y[r] = row r · x` for one token; rows are decoded in registers.
            #[target_feature(enable = $features)]
            pub(super) fn gemv(ty: QuantType, bytes: &[u8], x: Rows<'_>, y: &mut [f32]) {
                with_block!(ty, B => {
                    let blocks = quant::blocks::<B>(bytes).unwrap_or_default();
                    let (per_row, x) = (x.k / ty.block_len(), x.row(0));
                    let mut rows = blocks.chunks_exact(2 * per_row);
                    let mut pairs = y.chunks_exact_mut(2);
                    for (y, two) in (&mut pairs).zip(&mut rows) {
                        let (a, b) = two.split_at(per_row);
                        y.copy_from_slice(&Self::rows([a, b], x));
                    }
                    if let [last] = pairs.into_remainder() {
                        [*last] = Self::rows([rows.remainder()], x);
                    }
                }, float => unreachable!("{} is not made of blocks", ty.name()));
            }

            /// Several rows at once, so that independent sums overlap.
            #[inline]
            #[target_feature(enable = $features)]
            fn rows<B: Vectors, const R: usize>(rows: [&[B]; R], x: Row<'_>) -> [f32; R] {
                let (len, n) = (B::LEN, rows[0].len());
                assert!(rows.iter().all(|r| r.len() == n) && x.codes.len() == n * len);
                let per = 256 / len;
                let (mut sums, mut minima) = ([_mm256_setzero_ps(); R], [_mm256_setzero_ps(); R]);
                for (g, codes) in x.codes.chunks_exact(256).enumerate() {
                    let (mut group, mut scales) = ([&rows[0][..0]; R], [[0.0f32; 16]; R]);
                    for r in 0..R {
                        group[r] = &rows[r][g * per..(g + 1) * per];
                        ahead(group[r]);
                        // SAFETY: this function has AVX2, FMA and F16C.
                        scales[r] = unsafe { group_scales::<B, $signed>(group[r], x, g, &mut minima[r]) };
                    }
                    // From memory, a value is broadcast by the load itself; from a register it would take the
                    // only shuffle port.
                    let scales = std::hint::black_box(&scales);
                    for j in 0..8 {
                        // SAFETY: 32 of the group's 256 values.
                        let xv = unsafe { _mm256_loadu_si256(codes.as_ptr().add(32 * j).cast()) };
                        for r in 0..R {
                            // SAFETY: this function has AVX2 and F16C; `j` counts the 32s of 256.
                            let w = unsafe { group[r][32 * j / len].codes32(j % (len / 32)) };
                            let s = if B::RUN == 16 {
                                let (lo, hi) = (scales[r][2 * j], scales[r][2 * j + 1]);
                                _mm256_blend_ps::<0xf0>(_mm256_set1_ps(lo), _mm256_set1_ps(hi))
                            } else {
                                _mm256_set1_ps(scales[r][j])
                            };
                            sums[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(Self::wide_dot::<B>(w, xv)), s, sums[r]);
                        }
                    }
                }
                // The remaining blocks of 32, fewer than 256 values.
                let mut out = [0.0; R];
                for r in 0..R {
                    let mut rest = 0.0;
                    for b in n / per * per..n {
                        let (mut scale, mut min) = ([0.0; 16], [0.0; 16]);
                        let block = &rows[r][b];
                        block.scales::<F16c>(&mut scale, &mut min);
                        // SAFETY: as above; 32 of the row's values.
                        let (w, xv) = unsafe {
                            (block.codes32(0), _mm256_loadu_si256(x.codes[32 * b..32 * b + 32].as_ptr().cast()))
                        };
                        let dot = _mm256_cvtepi32_ps(Self::wide_dot::<B>(w, xv));
                        sums[r] = _mm256_fmadd_ps(dot, _mm256_set1_ps(scale[0] * x.scales[b]), sums[r]);
                        if !($signed && B::BITS == 8) {
                            rest += min[0] * x.sums32[b];
                        }
                    }
                    out[r] = hsum(_mm256_add_ps(sums[r], minima[r])) + rest;
                }
                out
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn wide_dot<B: Block>(w: __m256i, x: __m256i) -> __m256i {
                if $signed && B::BITS == 8 { signed_dot(signed(w), x) } else { Self::dot(w, x) }
            }

            $dot
        }
    };
}

batch! { Pairs, "avx2,fma,f16c", signed: true,
    /// Four-fold products of `RUN` columns of eight rows with `T` tokens.
    ///
    /// # Safety
    /// * `w` points to `RUN / 4` steps of a panel, `x` to `RUN` codes of `T` rows `stride` bytes apart.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn dots<const RUN: usize, const GROUP: usize, const T: usize>(w: *const u8, x: *const u8, stride: usize) -> [__m256i; T] {
        let mut sums = [_mm256_setzero_si256(); T];
        let ones = _mm256_set1_epi16(1);
        if GROUP == 0 {
            // A count that the compiler does not know: it would unroll the loop, gather each token's sums, and keep
            // the weights of all steps on the stack meanwhile.
            for step in 0..black_box(RUN / 4) {
                // SAFETY: step `step` of the run, by this function's contract.
                let w = unsafe { signed(_mm256_loadu_si256(w.add(step * STEP).cast())) };
                for i in 0..T {
                    // SAFETY: columns of this step in row `i`.
                    let xv = unsafe { broadcast4(x.add(i * stride + 4 * step)) };
                    sums[i] = _mm256_add_epi32(sums[i], signed_dot(w, xv));
                }
            }
            return sums;
        }
        for group in 0..RUN / 4 / GROUP {
            let mut pairs = [_mm256_setzero_si256(); T];
            for step in group * GROUP..(group + 1) * GROUP {
                // SAFETY: as above.
                let w = unsafe { _mm256_loadu_si256(w.add(step * STEP).cast()) };
                for i in 0..T {
                    // SAFETY: as above.
                    let xv = unsafe { broadcast4(x.add(i * stride + 4 * step)) };
                    pairs[i] = _mm256_add_epi16(pairs[i], _mm256_maddubs_epi16(w, xv));
                }
            }
            for i in 0..T {
                sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(pairs[i], ones));
            }
        }
        sums
    }
}

single! { Pairs, "avx2,fma,f16c", signed: true,
    /// Four-fold products of 32 codes below 128 with 32 activations.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn dot(w: __m256i, x: __m256i) -> __m256i {
        _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1))
    }
}

batch! { Vnni256, "avx2,fma,f16c,avxvnni", signed: false,
    /// Four-fold products of `RUN` columns of eight rows with `T` tokens.
    ///
    /// # Safety
    /// * `w` points to `RUN / 4` steps of a panel, `x` to `RUN` codes of `T` rows `stride` bytes apart.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn dots<const RUN: usize, const GROUP: usize, const T: usize>(w: *const u8, x: *const u8, stride: usize) -> [__m256i; T] {
        let mut sums = [_mm256_setzero_si256(); T];
        for step in 0..RUN / 4 {
            // SAFETY: step `step` of the run, by this function's contract.
            let w = unsafe { _mm256_loadu_si256(w.add(step * STEP).cast()) };
            for i in 0..T {
                // SAFETY: columns of this step in row `i`.
                let xv = unsafe { broadcast4(x.add(i * stride + 4 * step)) };
                sums[i] = _mm256_dpbusd_avx_epi32(sums[i], w, xv);
            }
        }
        sums
    }
}

single! { Vnni256, "avx2,fma,f16c,avxvnni", signed: false,
    /// Four-fold products of 32 codes with 32 activations.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    fn dot(w: __m256i, x: __m256i) -> __m256i {
        _mm256_dpbusd_avx_epi32(_mm256_setzero_si256(), w, x)
    }
}

single! { Vnni512, "avx2,fma,f16c,avx512vnni,avx512vl", signed: false,
    /// Four-fold products of 32 codes with 32 activations.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512vnni,avx512vl")]
    fn dot(w: __m256i, x: __m256i) -> __m256i {
        _mm256_dpbusd_epi32(_mm256_setzero_si256(), w, x)
    }
}
