//! Products of 16-bit integers on x86-64: rounded half-precision weights with a batch.
//!
//! `dpwssd` multiplies two pairs in each 32-bit lane and adds them up: twice as many products as a fused
//! multiply-add of floats. AVX-VNNI has it at 256 bits, AVX-512 VNNI at 512.

use super::TILE;
use super::int8_x86::{hsum, transpose};
use super::wide::{RUN, WEIGHT, WidePanel, WideRows};
use conpet_formats::quant::QuantType;
use std::arch::x86_64::*;
use std::ops::Range;

/// Runs of a panel that are multiplied with all tokens before the next ones, so that they stay in the L1 cache.
const RUNS: usize = 8;

/// Rounds a run, like [`super::wide::round`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn round(x: &[f32; RUN], limit: f32, codes: &mut [i16; RUN]) -> f32 {
    let mut v = [_mm256_setzero_ps(); 4];
    for (j, v) in v.iter_mut().enumerate() {
        // SAFETY: eight of 32 values.
        *v = unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * j)) };
    }
    let (q, scale) = rounded(v, limit);
    for (j, q) in q.into_iter().enumerate() {
        // SAFETY: sixteen of 32 codes.
        unsafe { _mm256_storeu_si256(codes.as_mut_ptr().add(16 * j).cast(), q) };
    }
    scale
}

/// Rounds 32 values to 32 codes, in order; returns the codes and their scale.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn rounded(v: [__m256; 4], limit: f32) -> ([__m256i; 2], f32) {
    let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
    let (mut most, mut poison) = (_mm256_setzero_ps(), _mm256_setzero_ps());
    for v in v {
        most = _mm256_max_ps(_mm256_and_ps(v, magnitude), most);
        poison = _mm256_add_ps(poison, _mm256_sub_ps(v, v));
    }
    let m = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps::<1>(most));
    let m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    let max = _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps::<1>(m, m)));
    let (q, scale) = rounded_to(v, max, limit);
    (q, scale + hsum(poison))
}

/// Rounds 32 values, of which `max` is the largest magnitude, to 32 codes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn rounded_to(v: [__m256; 4], max: f32, limit: f32) -> ([__m256i; 2], f32) {
    let inv = _mm256_set1_ps(if max > 0.0 { limit / max } else { 0.0 });
    let q = v.map(|v| _mm256_cvtps_epi32(_mm256_mul_ps(v, inv)));
    let pack = |a, b| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(a, b));
    ([pack(q[0], q[1]), pack(q[2], q[3])], max / limit)
}

/// 32 half-precision numbers as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn halves(ty: QuantType, bytes: &[u8; 2 * RUN]) -> [__m256; 4] {
    let mut v = [_mm256_setzero_ps(); 4];
    for (j, v) in v.iter_mut().enumerate() {
        // SAFETY: eight of 32 values, two bytes each.
        let h = unsafe { _mm_loadu_si128(bytes.as_ptr().add(16 * j).cast()) };
        *v = if ty == QuantType::F16 {
            _mm256_cvtph_ps(h)
        } else {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(h)))
        };
    }
    v
}

/// Unpacks rows, like [`WidePanel::unpack`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn unpack(p: &mut WidePanel, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
    p.reserve(k);
    assert!(rows <= TILE && bytes.len() == 2 * rows * k && k.is_multiple_of(RUN));
    for run in 0..k / RUN {
        for first in (0..TILE).step_by(8) {
            let mut eight = [[_mm256_setzero_si256(); 2]; 8];
            for (i, codes) in eight.iter_mut().enumerate() {
                let r = first + i;
                let mut scale = 0.0;
                if r < rows {
                    let at = 2 * (r * k + run * RUN);
                    let v = bytes[at..].first_chunk().map_or([_mm256_setzero_ps(); 4], |b| halves(ty, b));
                    (*codes, scale) = rounded(v, WEIGHT);
                }
                p.scales[run * TILE + r] = scale;
            }
            for half in 0..2 {
                for (j, pairs) in transpose(eight.map(|c| c[half])).into_iter().enumerate() {
                    let at = ((run * RUN / 2 + 8 * half + j) * TILE + first) * 2;
                    // SAFETY: sixteen codes of `k / 2 · 32 · 2`.
                    unsafe { _mm256_storeu_si256(p.codes[at..at + 16].as_mut_ptr().cast(), pairs) };
                }
            }
        }
    }
}

/// `out [n, 32] = x · panelᵀ`, as [`WidePanel::product`]: two vectors of rows at a time, so that each broadcast
/// pair of a token's values is used twice.
macro_rules! product {
    ($product:ident, $tokens:ident, $micro:ident, $features:literal, lanes: $lanes:literal, at once: $many:literal,
     $zero:ident, $zero_int:ident, $load:ident, $load_int:ident, $store:ident, $all:ident, $all_int:ident,
     $dot:ident, $float:ident, $mul:ident, $fma:ident) => {
        #[target_feature(enable = $features)]
        pub(super) fn $product(p: &WidePanel, x: WideRows<'_>, out: &mut [f32]) {
            let (n, all) = (out.len() / TILE, x.k / RUN);
            for first in (0..TILE).step_by(2 * $lanes) {
                for from in (0..all).step_by(RUNS) {
                    let runs = from..all.min(from + RUNS);
                    for t in (0..n).step_by($many) {
                        $tokens(p, first, runs.clone(), x, t, (n - t).min($many), out);
                    }
                }
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn $tokens(
            p: &WidePanel,
            first: usize,
            runs: Range<usize>,
            x: WideRows<'_>,
            t: usize,
            many: usize,
            out: &mut [f32],
        ) {
            match many {
                $many => $micro::<$many>(p, first, runs, x, t, out),
                2.. => {
                    $micro::<2>(p, first, runs.clone(), x, t, out);
                    if many > 2 {
                        $tokens(p, first, runs, x, t + 2, many - 2, out);
                    }
                }
                _ => $micro::<1>(p, first, runs, x, t, out),
            }
        }

        /// Rows from `first` on times `T` tokens; sums are added run by run, whatever `T` is.
        #[inline]
        #[target_feature(enable = $features)]
        fn $micro<const T: usize>(
            p: &WidePanel,
            first: usize,
            runs: Range<usize>,
            x: WideRows<'_>,
            t: usize,
            out: &mut [f32],
        ) {
            assert!(p.codes.len() >= x.k * TILE && p.scales.len() >= x.k / RUN * TILE && runs.end <= x.k / RUN);
            assert!(first + 2 * $lanes <= TILE);
            assert!(t + T <= x.n() && out.len() >= (t + T) * TILE);
            let ((codes, scales), stride) = (x.row(t), x.stride());
            let (codes, scales) = (codes.as_ptr(), scales.as_ptr());
            let mut sums = [[$zero(); 2]; T];
            if runs.start > 0 {
                for (i, s) in sums.iter_mut().enumerate() {
                    // SAFETY: values of token `t + i`, in bounds by the assertions above.
                    unsafe {
                        let out = out.as_ptr().add((t + i) * TILE + first);
                        *s = [$load(out), $load(out.add($lanes))];
                    }
                }
            }
            for run in runs {
                // SAFETY: run `run` of the panel and of rows `t..t + T`, in bounds by the assertions above.
                unsafe {
                    let mut dots = [[$zero_int(); 2]; T];
                    let (w, xs) = (p.codes.as_ptr().add(run * RUN * TILE + 2 * first), codes.add(run * RUN));
                    for pair in 0..RUN / 2 {
                        let w = w.add(pair * 2 * TILE);
                        let w = [$load_int(w.cast()), $load_int(w.add(2 * $lanes).cast())];
                        for (i, dots) in dots.iter_mut().enumerate() {
                            let x = $all_int(xs.add(2 * (i * stride + pair)).cast::<i32>().read_unaligned());
                            *dots = [$dot(dots[0], w[0], x), $dot(dots[1], w[1], x)];
                        }
                    }
                    let scale = p.scales.as_ptr().add(run * TILE + first);
                    let scale = [$load(scale), $load(scale.add($lanes))];
                    for i in 0..T {
                        let x = $all(*scales.add(i * stride + run));
                        for v in 0..2 {
                            sums[i][v] = $fma($float(dots[i][v]), $mul(scale[v], x), sums[i][v]);
                        }
                    }
                }
            }
            for (i, s) in sums.into_iter().enumerate() {
                // SAFETY: values of token `t + i`, in bounds by the assertions above.
                unsafe {
                    let out = out.as_mut_ptr().add((t + i) * TILE + first);
                    $store(out, s[0]);
                    $store(out.add($lanes), s[1]);
                }
            }
        }
    };
}

product! {
    product256, tokens256, micro256, "avx2,fma,avxvnni", lanes: 8, at once: 3,
    _mm256_setzero_ps, _mm256_setzero_si256, _mm256_loadu_ps, _mm256_loadu_si256, _mm256_storeu_ps, _mm256_set1_ps,
    _mm256_set1_epi32, _mm256_dpwssd_avx_epi32, _mm256_cvtepi32_ps, _mm256_mul_ps, _mm256_fmadd_ps
}

product! {
    product512, tokens512, micro512, "avx512f,avx512vnni", lanes: 16, at once: 6,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_storeu_ps, _mm512_set1_ps,
    _mm512_set1_epi32, _mm512_dpwssd_epi32, _mm512_cvtepi32_ps, _mm512_mul_ps, _mm512_fmadd_ps
}
