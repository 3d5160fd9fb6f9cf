//! Plain loops: the specification of every kernel.

use conpet_formats::quant::{self, QuantType};
use half::f16;

/// The set that every processor has.
#[derive(Debug, Clone, Copy)]
pub struct Naive;

impl Naive {
    /// Decodes whole rows.
    pub(super) fn dequantize(self, ty: QuantType, bytes: &[u8], out: &mut [f32]) {
        quant::dequantize(ty, bytes, out);
    }

    /// `y[r] = Σ_k w[r, k] · x[k]` for `y.len()` rows in `bytes`.
    pub(super) fn gemv(self, ty: QuantType, bytes: &[u8], x: &[f32], y: &mut [f32]) {
        let row = bytes.len() / y.len();
        for (y, w) in y.iter_mut().zip(bytes.chunks_exact(row)) {
            *y = quant::dot(ty, w, x);
        }
    }

    /// `prod [n, rows] = x [n, k] · w [rows, k]ᵀ`.
    pub(super) fn tile(self, w: &[f32], x: &[f32], k: usize, prod: &mut [f32]) {
        let rows = w.len() / k;
        for (x, prod) in x.chunks_exact(k).zip(prod.chunks_exact_mut(rows)) {
            for (w, p) in w.chunks_exact(k).zip(prod) {
                *p = w.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
            }
        }
    }

    /// `Σ a · b`.
    pub(super) fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
    }

    /// `Σ a · b`.
    pub(super) fn dot_f16(self, a: &[f32], b: &[f16]) -> f32 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(quant::f16(b.to_le_bytes()))).sum::<f64>() as f32
    }

    /// `acc += a · v`.
    pub(super) fn axpy_f32(self, acc: &mut [f32], a: f32, v: &[f32]) {
        acc.iter_mut().zip(v).for_each(|(o, v)| *o += a * v);
    }

    /// `acc += a · v`.
    pub(super) fn axpy_f16(self, acc: &mut [f32], a: f32, v: &[f16]) {
        acc.iter_mut().zip(v).for_each(|(o, v)| *o += a * quant::f16(v.to_le_bytes()));
    }

    /// `x = exp(x - max) / Σ`.
    pub(super) fn softmax(self, x: &mut [f32]) {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        x.iter_mut().for_each(|v| *v = (*v - max).exp());
        let sum: f64 = x.iter().map(|v| f64::from(*v)).sum();
        let inv = (1.0 / sum) as f32;
        x.iter_mut().for_each(|v| *v *= inv);
    }

    /// `gate = gate / (1 + exp(-gate)) · up`.
    pub(super) fn silu_mul(self, gate: &mut [f32], up: &[f32]) {
        gate.iter_mut().zip(up).for_each(|(g, u)| *g = *g / (1.0 + (-*g).exp()) * u);
    }
}
