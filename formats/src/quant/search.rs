//! Scales found by trying: what the quantizers of K-quants share.
//!
//! Each tries scales around the obvious one and keeps the one with the least weighed error (Kawrakow, llama.cpp pull
//! request 1684). All sums are in single precision and in order, so that the bytes are those of llama.cpp's
//! reference quantizers.

/// Below this, a run of numbers is taken for zeros.
pub(super) const TINY: f32 = 1e-15;

/// The nearest integer, ties to even, of a number of magnitude below 2^22.
#[inline]
pub(super) fn nearest(v: f32) -> i32 {
    // 1.5 · 2^23: the sum's last bit stands for one.
    ((v + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000
}

/// The number of largest magnitude.
pub(super) fn extreme(x: &[f32]) -> f32 {
    x.iter().copied().fold(0.0f32, |m, v| if v.abs() > m.abs() { v } else { m })
}

/// Σ w·x·l and Σ w·l² over codes `l`, weighed by the squares of the numbers.
fn sums(x: &[f32], code: impl Fn(f32) -> i32) -> (f32, f32) {
    x.iter().fold((0.0, 0.0), |(xl, l2), v| {
        let (w, l) = (v * v, code(*v) as f32);
        (xl + w * v * l, l2 + w * l * l)
    })
}

/// Scale and codes for `x ≈ scale · (code - n)` with codes below `2 n`.
pub(super) fn symmetric(x: &[f32], n: i32, codes: &mut [u8]) -> f32 {
    let max = extreme(x);
    if max.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let code = |inverse: f32| move |v: f32| nearest(inverse * v).clamp(-n, n - 1);
    let mut put = |inverse: f32| {
        codes.iter_mut().zip(x).for_each(|(c, v)| *c = (code(inverse)(*v) + n) as u8);
    };
    let inverse = -n as f32 / max;
    put(inverse);
    let (xl, l2) = sums(x, code(inverse));
    let mut scale = if l2 != 0.0 { xl / l2 } else { 0.0 };
    let mut best = scale * xl;
    for step in (-9..=9).filter(|s| *s != 0) {
        let inverse = -(n as f32 + 0.1 * step as f32) / max;
        let (xl, l2) = sums(x, code(inverse));
        if l2 > 0.0 && xl * xl > best * l2 {
            put(inverse);
            scale = xl / l2;
            best = scale * xl;
        }
    }
    scale
}

/// As [`symmetric`], moving one code after the other while that helps.
pub(super) fn symmetric_by_code(x: &[f32], n: i32, codes: &mut [u8]) -> f32 {
    let max = extreme(x);
    if max.abs() < TINY {
        codes.fill(0);
        return 0.0;
    }
    let inverse = -n as f32 / max;
    let code = |v: f32| nearest(inverse * v).clamp(-n, n - 1);
    let mut signed: Vec<i32> = x.iter().map(|v| code(*v)).collect();
    let (mut xl, mut l2) = sums(x, code);
    for _ in 0..5 {
        let mut changed = false;
        for (v, l) in x.iter().zip(&mut signed) {
            let w = v * v;
            let old = *l as f32;
            let mut xl_new = xl - w * v * old;
            if xl_new <= 0.0 {
                continue;
            }
            let mut l2_new = l2 - w * old * old;
            let new = nearest(v * l2_new / xl_new).clamp(-n, n - 1);
            if new == *l {
                continue;
            }
            xl_new += w * v * new as f32;
            l2_new += w * new as f32 * new as f32;
            if l2_new > 0.0 && xl_new * xl_new * l2 > xl * xl * l2_new {
                (*l, xl, l2, changed) = (new, xl_new, l2_new, true);
            }
        }
        if !changed {
            break;
        }
    }
    codes.iter_mut().zip(signed).for_each(|(c, l)| *c = (l + n) as u8);
    if l2 > 0.0 { xl / l2 } else { 0.0 }
}

/// How [`affine`] searches.
pub(super) struct Affine {
    /// Largest code.
    pub(super) max: u8,
    /// The scales tried divide the range into `max + from`, `max + from + 0.1`, and so on steps.
    pub(super) from: f32,
    /// How many are tried after the first.
    pub(super) tries: usize,
    /// Errors count by their magnitude, not by their square.
    pub(super) absolute: bool,
}

/// Scale, minimum and codes for `x ≈ scale · code - minimum`, both not negative.
pub(super) fn affine(x: &[f32], weights: &[f32], how: &Affine, codes: &mut [u8]) -> (f32, f32) {
    let top = f32::from(how.max);
    let mut min = x.iter().copied().fold(x[0], |m, v| if v < m { v } else { m });
    let max = x.iter().copied().fold(x[0], |m, v| if v > m { v } else { m });
    let (mut sum_w, mut sum_x) = (weights[0], weights[0] * x[0]);
    for (w, v) in weights.iter().zip(x).skip(1) {
        sum_w += w;
        sum_x += w * v;
    }
    if min > 0.0 {
        min = 0.0;
    }
    if max == min {
        codes.fill(0);
        return (0.0, -min);
    }
    let code = |inverse: f32, min: f32, v: f32| nearest(inverse * (v - min)).clamp(0, i32::from(how.max)) as u8;
    let error = |codes: &[u8], scale: f32, min: f32| {
        x.iter().zip(weights).zip(codes).fold(0.0, |sum, ((v, w), c)| {
            let d = scale * f32::from(*c) + min - v;
            sum + w * if how.absolute { d.abs() } else { d * d }
        })
    };
    let inverse = top / (max - min);
    let mut scale = 1.0 / inverse;
    codes.iter_mut().zip(x).for_each(|(c, v)| *c = code(inverse, min, *v));
    let mut best = error(codes, scale, min);
    let mut trial = [0u8; 32];
    let trial = &mut trial[..x.len()];
    for step in 0..=how.tries {
        let inverse = (how.from + 0.1 * step as f32 + top) / (max - min);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (0.0f32, 0.0f32, 0.0f32);
        for ((v, w), t) in x.iter().zip(weights).zip(trial.iter_mut()) {
            *t = code(inverse, min, *v);
            let l = f32::from(*t);
            sum_l += w * l;
            sum_l2 += w * l * l;
            sum_xl += w * l * v;
        }
        let determinant = sum_w * sum_l2 - sum_l * sum_l;
        if determinant > 0.0 {
            let mut new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut new_min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
            if new_min > 0.0 {
                (new_min, new_scale) = (0.0, sum_xl / sum_l2);
            }
            let e = error(trial, new_scale, new_min);
            if e < best {
                codes.copy_from_slice(trial);
                (best, scale, min) = (e, new_scale, new_min);
            }
        }
    }
    (scale, -min)
}
