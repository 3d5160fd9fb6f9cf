//! Plain loops: the specification of every kernel.

use super::input::{self, RowMut, Rows};
use super::panel::{self, Panel};
use super::tokens::{self, Blocks, WideTile};
use super::wide::{self, WidePanel, WideRows};
use super::{Gemm, math};
use conpet_formats::model_spec::Activation;
use conpet_formats::quant::{self, QuantType};
use half::f16;

/// The kernels that run on every processor.
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

    /// Rounds a row of activations to 8 bits.
    pub(super) fn quantize(self, x: &[f32], row: RowMut<'_>) {
        input::quantize(x, row);
    }

    /// Unpacks rows into a panel.
    pub(super) fn unpack(self, p: &mut Panel, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        p.unpack::<quant::Portable>(ty, bytes, rows, k, panel::interleave);
    }

    /// `out [n, 16] = x · panelᵀ` in integers.
    pub(super) fn product(self, p: &Panel, x: Rows<'_>, out: &mut [f32]) {
        panel::product(p, x, out);
    }

    /// Rounds 32 values to 16 bits.
    pub(super) fn round_wide(self, x: &[f32; wide::RUN], limit: f32, codes: &mut [i16; wide::RUN]) -> f32 {
        wide::round(x, limit, codes)
    }

    /// Unpacks half-precision rows into a panel.
    pub(super) fn unpack_wide(self, p: &mut WidePanel, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        p.unpack(ty, bytes, rows, k);
    }

    /// `out [n, 32] = x · panelᵀ` in 16-bit integers.
    pub(super) fn product_wide(self, p: &WidePanel, x: WideRows<'_>, out: &mut [f32]) {
        p.product(x, out);
    }

    /// Floats with turned activations.
    pub(super) fn product_turned(self, w: &[f32], rows: usize, x: Blocks<'_>, c: &mut [f32]) {
        x.product(w, rows, c);
    }

    /// Unpacks rows to 16-bit integers.
    pub(super) fn unpack_tile(self, tile: &mut WideTile, ty: QuantType, bytes: &[u8], rows: usize, k: usize) {
        tile.unpack(ty, bytes, rows, k);
    }

    /// 16-bit integers with turned activations.
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

    /// `y[r] = row r · x`, with `x` rounded to 8 bits.
    pub(super) fn gemv_int8(self, ty: QuantType, bytes: &[u8], x: Rows<'_>, y: &mut [f32]) {
        let (mut w, row, x) = (vec![0.0; x.k], bytes.len() / y.len(), x.row(0));
        for (y, bytes) in y.iter_mut().zip(bytes.chunks_exact(row)) {
            quant::dequantize(ty, bytes, &mut w);
            let x = |i: usize| f64::from(x.scales[i / 32]) * f64::from(x.codes[i] as i8);
            *y = w.iter().enumerate().map(|(i, w)| f64::from(*w) * x(i)).sum::<f64>() as f32;
        }
    }

    /// `c = a · b`, or added to it.
    pub(super) fn gemm(self, g: Gemm<'_>, c: &mut [f32], ldc: usize) {
        for r in 0..g.rows {
            for j in 0..g.cols {
                let products = (0..g.k).map(|i| f64::from(g.a[r * g.lda + i]) * f64::from(g.b[i * g.ldb + j]));
                let before = if g.add { f64::from(c[r * ldc + j]) } else { 0.0 };
                c[r * ldc + j] = (before + products.sum::<f64>()) as f32;
            }
        }
    }

    /// `out [cols, rows]` from `x [rows, cols]`.
    pub(super) fn transpose(self, x: &[f32], ldx: usize, rows: usize, cols: usize, out: &mut [f32], ldo: usize) {
        for r in 0..rows {
            for c in 0..cols {
                out[c * ldo + r] = x[r * ldx + c];
            }
        }
    }

    /// Half precision to single.
    pub(super) fn widen(self, x: &[f16], out: &mut [f32]) {
        out.iter_mut().zip(x).for_each(|(o, h)| *o = quant::f16(h.to_le_bytes()));
    }

    /// `x = exp(x - m)`, `m` the largest of `x` and `max`; returns `m` and the sum of `x`.
    pub(super) fn softmax_step(self, x: &mut [f32], max: f32) -> (f32, f32) {
        let max = x.iter().copied().fold(max, f32::max);
        x.iter_mut().for_each(|v| *v = (*v - max).exp());
        (max, x.iter().map(|v| f64::from(*v)).sum::<f64>() as f32)
    }

    /// `Σ a · b`.
    pub(super) fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
    }

    /// `acc += a · v`.
    pub(super) fn axpy_f32(self, acc: &mut [f32], a: f32, v: &[f32]) {
        acc.iter_mut().zip(v).for_each(|(o, v)| *o += a * v);
    }

    /// `x = exp(x - max) / Σ`.
    pub(super) fn softmax(self, x: &mut [f32]) {
        let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        x.iter_mut().for_each(|v| *v = (*v - max).exp());
        let sum: f64 = x.iter().map(|v| f64::from(*v)).sum();
        let inv = (1.0 / sum) as f32;
        x.iter_mut().for_each(|v| *v *= inv);
    }

    /// Layer norm in place.
    pub(super) fn layer_norm(self, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
        let mean = x.iter().map(|v| f64::from(*v)).sum::<f64>() / x.len() as f64;
        let square = |v: &f32| (f64::from(*v) - mean) * (f64::from(*v) - mean);
        let by = 1.0 / (x.iter().map(square).sum::<f64>() / x.len() as f64 + f64::from(eps)).sqrt();
        let rows = x.iter_mut().zip(weight.iter().zip(bias));
        rows.for_each(|(x, (w, b))| *x = ((f64::from(*x) - mean) * by) as f32 * w + b);
    }

    /// `gate = activation(gate) · up`.
    pub(super) fn gate_mul(self, activation: Activation, gate: &mut [f32], up: &[f32]) {
        self.activate(activation, gate);
        gate.iter_mut().zip(up).for_each(|(g, u)| *g *= u);
    }

    /// `x = activation(x)`.
    pub(super) fn activate(self, activation: Activation, x: &mut [f32]) {
        let f: fn(f32) -> f32 = match activation {
            Activation::Silu => |x| x / (1.0 + (-x).exp()),
            Activation::GeluTanh => |x| x / (1.0 + (-math::gelu_slope(x)).exp()),
            Activation::Gelu => |x| (f64::from(x) * normal_cdf(f64::from(x))) as f32,
        };
        x.iter_mut().for_each(|v| *v = f(*v));
    }

    /// `x = cap · tanh(x / cap)`.
    pub(super) fn soft_cap(self, x: &mut [f32], cap: f32) {
        x.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh());
    }
}

/// `Φ(x)`, by the series `½ + φ(x) Σ x^(2n+1) / (1·3·5…(2n+1))`; beyond 6, what is left is below 1e-9.
fn normal_cdf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 + sum * (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt()
}
