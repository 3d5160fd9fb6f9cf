//! Each quant type's codes and scales in vector registers: the same as [`Block::codes`] and [`Block::scales`],
//! 32 codes and eight scales at a time. Used in products for one token, where decoding a block costs more than
//! multiplying it.

use super::F16c;
use conpet_formats::quant::Block;
use conpet_formats::quant::iq2_s::BlockIq2S;
use conpet_formats::quant::iq2_xs::BlockIq2Xs;
use conpet_formats::quant::iq2_xxs::BlockIq2Xxs;
use conpet_formats::quant::iq3_s::BlockIq3S;
use conpet_formats::quant::iq3_xxs::BlockIq3Xxs;
use conpet_formats::quant::iq4_nl::{BlockIq4Nl, TABLE};
use conpet_formats::quant::iq4_xs::BlockIq4Xs;
use conpet_formats::quant::mxfp4::{self, BlockMxfp4};
use conpet_formats::quant::q2_k::BlockQ2K;
use conpet_formats::quant::q3_k::BlockQ3K;
use conpet_formats::quant::q4_0::BlockQ4_0;
use conpet_formats::quant::q4_1::BlockQ4_1;
use conpet_formats::quant::q4_k::BlockQ4K;
use conpet_formats::quant::q5_0::BlockQ5_0;
use conpet_formats::quant::q5_1::BlockQ5_1;
use conpet_formats::quant::q5_k::BlockQ5K;
use conpet_formats::quant::q6_k::BlockQ6K;
use conpet_formats::quant::q8_0::BlockQ8_0;
use conpet_formats::quant::tq1_0::BlockTq1_0;
use conpet_formats::quant::tq2_0::BlockTq2_0;
use std::arch::x86_64::*;

/// Scales and minima of 256 weights: eight of each, in the first vector, if 32 weights share a scale; sixteen
/// if 16 do.
pub(in super::super) type Scales = ([__m256; 2], [__m256; 2]);

/// A block type as AVX2 reads it.
pub(in super::super) trait Vectors: Block + Sized {
    /// Codes `32 j .. 32 j + 32` of the block.
    ///
    /// # Safety
    /// * It is inlined into a function with AVX2 and F16C; so are all functions here.
    /// * `32 j` is within the block.
    unsafe fn codes32(&self, j: usize) -> __m256i;

    /// Scales and minima of blocks that make up 256 weights.
    ///
    /// # Safety
    /// * As above.
    #[inline(always)]
    unsafe fn scales256(blocks: &[Self]) -> Scales {
        let runs = Self::LEN / Self::RUN;
        let (mut scale, mut min) = ([0.0; 16], [0.0; 16]);
        for (i, b) in blocks.iter().enumerate() {
            b.scales::<F16c>(&mut scale[i * runs..], &mut min[i * runs..]);
        }
        // SAFETY: sixteen values each.
        unsafe {
            let two = |v: &[f32; 16]| [_mm256_loadu_ps(v.as_ptr()), _mm256_loadu_ps(v.as_ptr().add(8))];
            (two(&scale), two(&min))
        }
    }
}

/// # Safety
/// * As for [`Vectors::codes32`], and there are 32 bytes from `at` on.
#[inline(always)]
unsafe fn load(bytes: &[u8], at: usize) -> __m256i {
    debug_assert!(at + 32 <= bytes.len());
    // SAFETY: by the contract.
    unsafe { _mm256_loadu_si256(bytes.as_ptr().add(at).cast()) }
}

/// `(v >> shift) & mask` in every byte; the mask drops the bits shifted in from the next byte.
///
/// # Safety
/// * As for [`Vectors::codes32`].
#[inline(always)]
unsafe fn bits(v: __m256i, shift: usize, mask: i8) -> __m256i {
    // SAFETY: registers only.
    unsafe { _mm256_and_si256(_mm256_srl_epi16(v, _mm_cvtsi32_si128(shift as i32)), _mm256_set1_epi8(mask)) }
}

/// `value` in every byte of `v` that has bit `bit`.
///
/// # Safety
/// * As for [`Vectors::codes32`].
#[inline(always)]
unsafe fn where_bit(v: __m256i, bit: usize, value: i8) -> __m256i {
    // SAFETY: registers only.
    unsafe {
        let mask = _mm256_set1_epi8((1u8 << bit) as i8);
        _mm256_and_si256(_mm256_cmpeq_epi8(_mm256_and_si256(v, mask), mask), _mm256_set1_epi8(value))
    }
}

/// Sixteen bytes' low nibbles, then their high ones.
///
/// # Safety
/// * As for [`Vectors::codes32`].
#[inline(always)]
unsafe fn nibbles(qs: &[u8; 16]) -> __m256i {
    // SAFETY: 16 bytes. A load to both halves and a shift of one costs less than an insertion.
    unsafe {
        let both = _mm256_broadcastsi128_si256(_mm_loadu_si128(qs.as_ptr().cast()));
        let high = _mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
        _mm256_and_si256(high, _mm256_set1_epi8(15))
    }
}

/// 16 where bit `i` of `qh` is set, in byte `i`.
///
/// # Safety
/// * As for [`Vectors::codes32`].
#[inline(always)]
unsafe fn fifth_bits(qh: [u8; 4]) -> __m256i {
    // SAFETY: registers only.
    unsafe {
        let all = _mm256_set1_epi32(i32::from_le_bytes(qh));
        let spread = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let own = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let byte = _mm256_and_si256(_mm256_shuffle_epi8(all, spread), own);
        _mm256_and_si256(_mm256_cmpeq_epi8(byte, own), _mm256_set1_epi8(16))
    }
}

/// The first four bytes of eight blocks. Uses broadcasting loads and blends, because insertions would all wait
/// for the only shuffle port.
///
/// # Safety
/// * As for [`Vectors::codes32`].
#[inline(always)]
unsafe fn first_words<B>(blocks: &[B]) -> __m256i {
    assert!(blocks.len() == 8 && size_of::<B>() >= 4);
    // SAFETY: four bytes of a block of at least four.
    let word = |i: usize| unsafe { _mm256_set1_epi32(blocks.as_ptr().add(i).cast::<i32>().read_unaligned()) };
    // SAFETY: registers only.
    unsafe {
        let (a, b) = (_mm256_blend_epi32::<0x02>(word(0), word(1)), _mm256_blend_epi32::<0x08>(word(2), word(3)));
        let (c, d) = (_mm256_blend_epi32::<0x20>(word(4), word(5)), _mm256_blend_epi32::<0x80>(word(6), word(7)));
        let (low, high) = (_mm256_blend_epi32::<0x0c>(a, b), _mm256_blend_epi32::<0xc0>(c, d));
        _mm256_blend_epi32::<0xf0>(low, high)
    }
}

/// The low and the high half of each word, as half-precision numbers.
///
/// # Safety
/// * As for [`Vectors::codes32`].
#[inline(always)]
unsafe fn halves(words: __m256i) -> [__m256; 2] {
    // SAFETY: registers only; F16C by the contract of the callers.
    unsafe {
        let low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
        let mixed = _mm256_packus_epi32(low, _mm256_srli_epi32::<16>(words));
        let sorted = _mm256_permute4x64_epi64::<0b11_01_10_00>(mixed);
        [_mm256_cvtph_ps(_mm256_castsi256_si128(sorted)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(sorted))]
    }
}

/// Scales of blocks that begin with a scale and whose minimum follows from it.
///
/// # Safety
/// * As for [`Vectors::codes32`].
#[inline(always)]
unsafe fn symmetric<B>(blocks: &[B], offset: f32) -> Scales {
    // SAFETY: by the callers' contract.
    unsafe {
        let d = halves(first_words(blocks))[0];
        let none = _mm256_setzero_ps();
        ([d, none], [_mm256_mul_ps(d, _mm256_set1_ps(-offset)), none])
    }
}

/// Scales of blocks that begin with a scale and a minimum.
///
/// # Safety
/// * As for [`Vectors::codes32`].
#[inline(always)]
unsafe fn with_minimum<B>(blocks: &[B]) -> Scales {
    // SAFETY: by the callers' contract.
    unsafe {
        let [d, m] = halves(first_words(blocks));
        ([d, _mm256_setzero_ps()], [m, _mm256_setzero_ps()])
    }
}

/// The packed scales and minima of Q4_K and Q5_K.
///
/// # Safety
/// * As for [`Vectors::codes32`].
#[inline(always)]
unsafe fn six_bits(d: [u8; 2], dmin: [u8; 2], s: &[u8; 12]) -> Scales {
    use conpet_formats::quant::Half;
    let word = |i: usize| u32::from_le_bytes([s[i], s[i + 1], s[i + 2], s[i + 3]]);
    let (a, b, c) = (word(0), word(4), word(8));
    let eight = |low: u32, four: u32| -> u64 {
        u64::from(low & 0x3f3f_3f3f) | u64::from(four & 0x0f0f_0f0f | (low >> 6 & 0x0303_0303) << 4) << 32
    };
    let (d, dmin) = F16c::two(d, dmin);
    // SAFETY: registers only.
    unsafe {
        let floats = |v: u64, by: f32| {
            let v = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(v as i64)));
            [_mm256_mul_ps(v, _mm256_set1_ps(by)), _mm256_setzero_ps()]
        };
        (floats(eight(a, c), d), floats(eight(b, c >> 4), -dmin))
    }
}

/// Implements [`Vectors`] for one type: its codes, and its scales where the default is slow.
macro_rules! vectors {
    ($block:ident, |$b:ident, $j:ident| $codes:expr $(, |$g:ident| $scales:expr)?) => {
        impl Vectors for $block {
            #[inline(always)]
            unsafe fn codes32(&self, $j: usize) -> __m256i {
                let $b = self;
                // SAFETY: by this function's own contract; loads stay within arrays of the block.
                unsafe { $codes }
            }
            $(
                #[inline(always)]
                unsafe fn scales256($g: &[Self]) -> Scales {
                    // SAFETY: by this function's own contract.
                    unsafe { $scales }
                }
            )?
        }
    };
}

vectors!(BlockQ8_0, |b, _j| _mm256_xor_si256(_mm256_loadu_si256(b.qs.as_ptr().cast()), _mm256_set1_epi8(-128)), |g| {
    symmetric(g, 128.0)
});
vectors!(BlockQ4_0, |b, _j| nibbles(&b.qs), |g| symmetric(g, 8.0));
vectors!(BlockQ4_1, |b, _j| nibbles(&b.qs), |g| with_minimum(g));
vectors!(BlockQ5_0, |b, _j| _mm256_or_si256(nibbles(&b.qs), fifth_bits(b.qh)), |g| symmetric(g, 16.0));
vectors!(BlockQ5_1, |b, _j| _mm256_or_si256(nibbles(&b.qs), fifth_bits(b.qh)), |g| with_minimum(g));
vectors!(
    BlockIq4Nl,
    |b, _j| {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(TABLE.as_ptr().cast()));
        _mm256_shuffle_epi8(table, nibbles(&b.qs))
    },
    |g| symmetric(g, 128.0)
);
vectors!(BlockQ4K, |b, j| bits(load(&b.qs, 32 * (j / 2)), 4 * (j % 2), 15), |g| {
    six_bits(g[0].d, g[0].dmin, &g[0].scales)
});
vectors!(
    BlockQ5K,
    |b, j| _mm256_or_si256(bits(load(&b.qs, 32 * (j / 2)), 4 * (j % 2), 15), where_bit(load(&b.qh, 0), j, 16)),
    |g| six_bits(g[0].d, g[0].dmin, &g[0].scales)
);
vectors!(
    BlockQ6K,
    |b, j| {
        let low = bits(load(&b.ql, 64 * (j / 4) + 32 * (j % 2)), 4 * (j % 4 / 2), 15);
        let high = bits(load(&b.qh, 32 * (j / 4)), 2 * (j % 4), 3);
        _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
    },
    |g| {
        let s = _mm_loadu_si128(g[0].scales.as_ptr().cast());
        let d = _mm256_set1_ps(<F16c as conpet_formats::quant::Half>::f32(g[0].d));
        let eight = |s| _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(s)), d);
        let scale = [eight(s), eight(_mm_unpackhi_epi64(s, s))];
        (scale, scale.map(|s| _mm256_mul_ps(s, _mm256_set1_ps(-32.0))))
    }
);
vectors!(BlockQ2K, |b, j| bits(load(&b.qs, 32 * (j / 4)), 2 * (j % 4), 3));
vectors!(BlockQ3K, |b, j| {
    _mm256_or_si256(bits(load(&b.qs, 32 * (j / 4)), 2 * (j % 4), 3), where_bit(load(&b.hmask, 0), j, 4))
});
vectors!(BlockIq4Xs, |b, j| {
    let qs: &[u8; 16] = b.qs[16 * j..].first_chunk().unwrap_or(&[0; 16]);
    let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(TABLE.as_ptr().cast()));
    _mm256_shuffle_epi8(table, nibbles(qs))
});
vectors!(BlockMxfp4, |b, _j| {
    let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(mxfp4::TABLE.as_ptr().cast()));
    _mm256_shuffle_epi8(table, nibbles(&b.qs))
});
vectors!(BlockTq2_0, |b, j| bits(load(&b.qs, 32 * (j / 4)), 2 * (j % 4), 3));
vectors!(BlockIq3S, |b, j| load(&decoded(b), 32 * j));
vectors!(BlockIq3Xxs, |b, j| load(&decoded(b), 32 * j));
vectors!(BlockIq2S, |b, j| load(&decoded(b), 32 * j));
vectors!(BlockIq2Xs, |b, j| load(&decoded(b), 32 * j));
vectors!(BlockIq2Xxs, |b, j| load(&decoded(b), 32 * j));
vectors!(BlockTq1_0, |b, j| load(&decoded(b), 32 * j));

/// All codes of a block whose codes are looked up one by one.
#[inline(always)]
fn decoded<B: Block>(block: &B) -> [u8; 256] {
    let mut codes = [0; 256];
    block.codes(&mut codes);
    codes
}
