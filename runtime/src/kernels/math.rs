//! Scalar functions written so that compilers turn loops over them into vector code; only sets with fused
//! multiply-adds call them.

use conpet_formats::model_spec::Activation;

/// `exp(x)`, relative error below 2e-7 on [-87, 88]; beyond, the value at the nearer end; NaN stays NaN.
///
/// Range reduction by powers of two and a degree-6 polynomial (Cephes `expf`).
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    // Adding 1.5 · 2^23 leaves the rounded integer in the low bits.
    let shifted = x.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let n = shifted - 12_582_912.0;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let p = 1.987_569_1e-4f32;
    let p = p.mul_add(r, 1.398_2e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 1.666_666_5e-1);
    let p = p.mul_add(r, 5e-1);
    let y = p.mul_add(r * r, r) + 1.0;
    y * f32::from_bits((shifted.to_bits().wrapping_sub(0x4b40_0000).wrapping_add(127)) << 23)
}

/// Loops shared by the vector sets; inlined into their functions, where they vectorise.
#[inline(always)]
pub(super) fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, |m, v| if v > m { v } else { m });
    // Eight running sums, because one would serialise the loop.
    let mut sums = [0.0f32; 8];
    let mut chunks = x.chunks_exact_mut(8);
    for c in &mut chunks {
        for (v, s) in c.iter_mut().zip(&mut sums) {
            *v = exp(*v - max);
            *s += *v;
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for v in chunks.into_remainder() {
        *v = exp(*v - max);
        sum += *v;
    }
    let inv = 1.0 / sum;
    x.iter_mut().for_each(|v| *v *= inv);
}

#[inline(always)]
pub(super) fn softmax_step(x: &mut [f32], max: f32) -> (f32, f32) {
    let mut most = [max; 16];
    let mut chunks = x.chunks_exact(16);
    for c in &mut chunks {
        for (v, m) in c.iter().zip(&mut most) {
            *m = if *v > *m { *v } else { *m };
        }
    }
    let rest = chunks.remainder().iter();
    let max = most.iter().chain(rest).copied().fold(max, |m, v| if v > m { v } else { m });
    let mut sums = [0.0f32; 16];
    let mut chunks = x.chunks_exact_mut(16);
    for c in &mut chunks {
        for (v, s) in c.iter_mut().zip(&mut sums) {
            *v = exp(*v - max);
            *s += *v;
        }
    }
    let mut sum: f32 = sums.iter().sum();
    for v in chunks.into_remainder() {
        *v = exp(*v - max);
        sum += *v;
    }
    (max, sum)
}

/// Layer norm in place; sums have sixteen running parts, as above.
#[inline(always)]
pub(super) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let sum = |x: &[f32], f: fn(f32) -> f32| {
        let (mut sums, chunks) = ([0.0f32; 16], x.chunks_exact(16));
        let rest: f32 = chunks.remainder().iter().map(|v| f(*v)).sum();
        for c in chunks {
            c.iter().zip(&mut sums).for_each(|(v, s)| *s += f(*v));
        }
        sums.iter().sum::<f32>() + rest
    };
    let mean = sum(x, |v| v) / x.len() as f32;
    x.iter_mut().for_each(|v| *v -= mean);
    let s = 1.0 / (sum(x, |v| v * v) / x.len() as f32 + eps).sqrt();
    x.iter_mut().zip(weight.iter().zip(bias)).for_each(|(x, (w, b))| *x = (*x * s).mul_add(*w, *b));
}

#[inline(always)]
pub(super) fn gate_mul(activation: Activation, gate: &mut [f32], up: &[f32]) {
    let both = gate.iter_mut().zip(up);
    match activation {
        Activation::Silu => both.for_each(|(g, u)| *g = silu(*g) * u),
        Activation::GeluTanh => both.for_each(|(g, u)| *g = gelu_tanh(*g) * u),
        Activation::Gelu => both.for_each(|(g, u)| *g = gelu(*g) * u),
    }
}

#[inline(always)]
pub(super) fn activate(activation: Activation, x: &mut [f32]) {
    match activation {
        Activation::Silu => x.iter_mut().for_each(|v| *v = silu(*v)),
        Activation::GeluTanh => x.iter_mut().for_each(|v| *v = gelu_tanh(*v)),
        Activation::Gelu => x.iter_mut().for_each(|v| *v = gelu(*v)),
    }
}

/// `x = cap · tanh(x / cap)`.
#[inline(always)]
pub(super) fn soft_cap(x: &mut [f32], cap: f32) {
    let twice = 2.0 / cap;
    x.iter_mut().for_each(|v| *v = cap * (1.0 - 2.0 / (exp(*v * twice) + 1.0)));
}

#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

#[inline(always)]
fn gelu_tanh(x: f32) -> f32 {
    x / (1.0 + exp(-gelu_slope(x)))
}

/// `x · Φ(x)`. Absolute error of `Φ` below 1e-7 (Abramowitz & Stegun 1964, 7.1.26).
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / z.mul_add(0.327_591_1, 1.0);
    let p = 1.061_405_4f32;
    let p = p.mul_add(t, -1.453_152_1);
    let p = p.mul_add(t, 1.421_413_8);
    let p = p.mul_add(t, -0.284_496_74);
    let p = p.mul_add(t, 0.254_829_6);
    // Half of erfc(z): the tail beyond |x|.
    let tail = 0.5 * p * t * exp(-z * z);
    if x < 0.0 { x * tail } else { x - x * tail }
}

/// `gelu(x) = x · σ(gelu_slope(x))`, from `(1 + tanh y) / 2 = σ(2y)`.
#[inline(always)]
pub(super) fn gelu_slope(x: f32) -> f32 {
    // 2 · sqrt(2 / π), and that times 0.044715.
    x * (1.595_769 + 0.071_354_815 * x * x)
}
