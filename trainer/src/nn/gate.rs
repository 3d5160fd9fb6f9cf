//! The middle of a gated feed-forward layer, `f(gate) · up` (Shazeer 2020), gate and up side by side in
//! one buffer. Both functions `f` have the form `g · σ(s(g))`, so one gradient serves them.

use super::MIN_ROWS;
use conpet_formats::model_spec::Activation;
use conpet_runtime::kernels::Kernels;
use rayon::prelude::*;

/// The function and width of a gated layer.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    /// The function `f`.
    pub activation: Activation,
    /// Width of gate, up and output.
    pub width: usize,
    /// Instruction set.
    pub kernels: Kernels,
}

impl Gate {
    /// `gate_up [n, 2 · width]` to `[n, width]`.
    pub fn forward(self, gate_up: &[f32]) -> Vec<f32> {
        let width = self.width;
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

    /// The gradient of `gate_up`, given `dy [n, width]`:
    /// `d gate = dy · up · σ(1 + gate(1 - σ) s')`, `d up = dy · gate · σ`, `σ = sigmoid(s(gate))`.
    pub fn backward(self, gate_up: &[f32], dy: &[f32]) -> Vec<f32> {
        let width = self.width;
        let mut d = vec![0.0; gate_up.len()];
        d.par_chunks_exact_mut(2 * width)
            .zip(gate_up.par_chunks_exact(2 * width).zip(dy.par_chunks_exact(width)))
            .with_min_len(MIN_ROWS / 4)
            .for_each_init(
                || vec![1f32; width],
                |ones, (d, (row, dy))| {
                    let (gate, up) = row.split_at(width);
                    let (d_gate, d_up) = d.split_at_mut(width);
                    // f comes from the vector kernel; σ follows from it by division.
                    d_up.copy_from_slice(gate);
                    self.kernels.gate_mul(self.activation, d_up, ones);
                    match self.activation {
                        Activation::Silu => row_backward(gate, up, dy, d_gate, d_up, |_| 1.0),
                        // s = 2 sqrt(2 / π) (g + 0.044715 g³), as `1 + tanh y = 2 σ(2y)`.
                        Activation::GeluTanh => {
                            row_backward(gate, up, dy, d_gate, d_up, |g| 1.595_769 + 3.0 * 0.071_354_815 * g * g);
                        }
                    }
                },
            );
        d
    }
}

/// One row of [`Gate::backward`]; `d_up` holds `f(gate)` before, and `slope` is `s'`.
#[inline(always)]
fn row_backward(
    gate: &[f32],
    up: &[f32],
    dy: &[f32],
    d_gate: &mut [f32],
    d_up: &mut [f32],
    slope: impl Fn(f32) -> f32,
) {
    for i in 0..gate.len() {
        let (g, f, slope) = (gate[i], d_up[i], slope(gate[i]));
        let sigma = if g.abs() > 1e-3 { f / g } else { 0.5 + 0.25 * g * slope };
        d_gate[i] = dy[i] * up[i] * sigma * (1.0 + g * (1.0 - sigma) * slope);
        d_up[i] = dy[i] * f;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{plain_gradient, wave};

    #[test]
    fn gradient_is_exact() {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let gate = Gate { activation, width: 12, kernels: Kernels::detect() };
            let mut x = wave(3 * 24, 0.0);
            (x[3], x[4], x[5]) = (0.0, -6.0, 5e-4);
            plain_gradient(&x, |x| gate.forward(x), |x, dy| gate.backward(x, dy));
        }
    }
}
