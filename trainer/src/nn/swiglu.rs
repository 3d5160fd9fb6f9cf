//! `silu(gate) · up` (Shazeer 2020), gate and up side by side in one buffer.

use super::MIN_ROWS;
use conpet_formats::model_spec::Activation;
use conpet_runtime::kernels::Kernels;
use rayon::prelude::*;

/// `gate_up [n, 2 · width]` to `[n, width]`.
pub fn forward(kernels: Kernels, gate_up: &[f32], width: usize) -> Vec<f32> {
    let mut y = vec![0.0; gate_up.len() / 2];
    y.par_chunks_exact_mut(width).zip(gate_up.par_chunks_exact(2 * width)).with_min_len(MIN_ROWS / 4).for_each(
        |(y, row)| {
            let (gate, up) = row.split_at(width);
            y.copy_from_slice(gate);
            kernels.gate_mul(Activation::Silu, y, up);
        },
    );
    y
}

/// The gradient of `gate_up`, given `dy [n, width]`:
/// `d gate = dy · up · σ(1 + gate(1 - σ))`, `d up = dy · gate · σ`, `σ = sigmoid(gate)`.
pub fn backward(kernels: Kernels, gate_up: &[f32], dy: &[f32], width: usize) -> Vec<f32> {
    let mut d = vec![0.0; gate_up.len()];
    d.par_chunks_exact_mut(2 * width)
        .zip(gate_up.par_chunks_exact(2 * width).zip(dy.par_chunks_exact(width)))
        .with_min_len(MIN_ROWS / 4)
        .for_each_init(
            || vec![1f32; width],
            |ones, (d, (row, dy))| {
                let (gate, up) = row.split_at(width);
                let (d_gate, d_up) = d.split_at_mut(width);
                // silu by the vector kernel; σ follows from it by a division.
                d_up.copy_from_slice(gate);
                kernels.gate_mul(Activation::Silu, d_up, ones);
                for i in 0..width {
                    let (g, silu) = (gate[i], d_up[i]);
                    let sigma = if g.abs() > 1e-3 { silu / g } else { 0.5 + 0.25 * g };
                    d_gate[i] = dy[i] * up[i] * sigma * (1.0 + g * (1.0 - sigma));
                    d_up[i] = dy[i] * silu;
                }
            },
        );
    d
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{plain_gradient, wave};

    #[test]
    fn gradient_is_exact() {
        let k = Kernels::detect();
        let mut x = wave(3 * 24, 0.0);
        (x[3], x[4]) = (0.0, -6.0);
        plain_gradient(&x, |x| forward(k, x, 12), |x, dy| backward(k, x, dy, 12));
    }
}
