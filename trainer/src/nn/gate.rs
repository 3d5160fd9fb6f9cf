//! The middle of a feed-forward layer: `f(gate) · up` (Shazeer 2020), gate and up side by side in one buffer,
//! or `f(up)` in layers without a gate.

use super::MIN_ROWS;
use conpet_formats::model_spec::Activation;
use conpet_runtime::kernels::Kernels;
use rayon::prelude::*;

/// The function and width of the layer.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// The function `f`.
    pub activation: Activation,
    /// Whether there is a gate.
    pub gated: bool,
    /// Width of gate, up and output.
    pub width: usize,
    /// Instruction set.
    pub kernels: Kernels,
}

impl Gate {
    /// `gate_up [n, 2 · width]`, or `[n, width]` without a gate, to `[n, width]`.
    pub fn forward(self, gate_up: &[f32]) -> Vec<f32> {
        let width = self.width;
        if !self.gated {
            let mut y = gate_up.to_vec();
            let rows = y.par_chunks_exact_mut(width).with_min_len(MIN_ROWS / 4);
            rows.for_each(|y| self.kernels.activate(self.activation, y));
            return y;
        }
        let mut y = vec![0.0; gate_up.len() / 2];
        y.par_chunks_exact_mut(width).zip(gate_up.par_chunks_exact(2 * width)).with_min_len(MIN_ROWS / 4).for_each(
            |(y, row)| {
                let (gate, up) = row.split_at(width);
                y.copy_from_slice(gate);
                self.kernels.gate_mul(self.activation, y, up);
            },
        );
        y
    }

    /// The gradient of `gate_up`, given `dy [n, width]`: `d gate = dy · up · f'(gate)`, `d up = dy · f(gate)`;
    /// without a gate, `d up = dy · f'(up)`.
    pub fn backward(self, gate_up: &[f32], dy: &[f32]) -> Vec<f32> {
        let width = self.width;
        let mut d = vec![0.0; gate_up.len()];
        if !self.gated {
            let rows =
                d.par_chunks_exact_mut(width).zip(gate_up.par_chunks_exact(width).zip(dy.par_chunks_exact(width)));
            rows.with_min_len(MIN_ROWS / 4).for_each_init(
                || vec![0f32; width],
                |f, (d, (up, dy))| {
                    f.copy_from_slice(up);
                    self.kernels.activate(self.activation, f);
                    slopes(self.activation, up, f, d);
                    d.iter_mut().zip(dy).for_each(|(d, dy)| *d *= dy);
                },
            );
            return d;
        }
        let rows =
            d.par_chunks_exact_mut(2 * width).zip(gate_up.par_chunks_exact(2 * width).zip(dy.par_chunks_exact(width)));
        rows.with_min_len(MIN_ROWS / 4).for_each(|(d, (row, dy))| {
            let (gate, up) = row.split_at(width);
            let (d_gate, d_up) = d.split_at_mut(width);
            d_up.copy_from_slice(gate);
            self.kernels.activate(self.activation, d_up);
            slopes(self.activation, gate, d_up, d_gate);
            for i in 0..width {
                d_gate[i] *= dy[i] * up[i];
                d_up[i] *= dy[i];
            }
        });
        d
    }
}

/// The derivatives `d = f'(x)`, from `x` and `f(x)`, whose values come from the vector kernel.
///
/// SiLU and GELU's tanh form are `x · σ(s(x))`, so `f' = σ · (1 + x · (1 - σ) · s')`, and σ follows by division.
/// GELU is `x · Φ(x)`, so `f' = Φ + x · φ(x)`.
fn slopes(activation: Activation, x: &[f32], f: &[f32], d: &mut [f32]) {
    let all = x.iter().zip(f).zip(d);
    let sigmoid = |x: f32, f: f32, slope: f32| {
        let sigma = if x.abs() > 1e-3 { f / x } else { 0.5 + 0.25 * x * slope };
        sigma * (1.0 + x * (1.0 - sigma) * slope)
    };
    match activation {
        Activation::Silu => all.for_each(|((x, f), d)| *d = sigmoid(*x, *f, 1.0)),
        // s = 2 sqrt(2 / π) (x + 0.044715 x³), as `1 + tanh y = 2 σ(2y)`.
        Activation::GeluTanh => {
            all.for_each(|((x, f), d)| *d = sigmoid(*x, *f, 1.595_769 + 3.0 * 0.071_354_815 * x * x));
        }
        Activation::Gelu => all.for_each(|((x, f), d)| {
            let density = 0.398_942_3 * (-0.5 * x * x).exp();
            let phi = if x.abs() > 1e-3 { f / x } else { 0.5 + 0.398_942_3 * x };
            *d = phi + x * density;
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{plain_gradient, wave};

    #[test]
    fn gradient_is_exact() {
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
            for gated in [true, false] {
                let gate = Gate { activation, gated, width: 12, kernels: Kernels::detect() };
                let mut x = wave(3 * 24, 0.0);
                (x[3], x[4], x[5]) = (0.0, -6.0, 5e-4);
                plain_gradient(&x, |x| gate.forward(x), |x, dy| gate.backward(x, dy));
            }
        }
    }
}
