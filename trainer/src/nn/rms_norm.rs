//! RMSNorm with a frozen weight (Zhang & Sennrich 2019):
//! `y_i = w_i · x_i · s`, `s = 1 / sqrt(mean(x²) + eps)`, for each token.

use super::{operand, with_numbers};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use conpet_runtime::kernels::Kernels;
use rayon::prelude::*;
use std::sync::Arc;

/// A norm over rows of its weight's width.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    /// Weight `[width]`.
    pub weight: Arc<Vec<f32>>,
    /// Constant added to the mean square.
    pub eps: f32,
    /// Instruction set.
    pub kernels: Kernels,
}

/// Normalises each row of `x [n, hidden]`.
pub fn rms_norm(x: &Tensor, weight: &Arc<Vec<f32>>, eps: f32) -> Result<Tensor> {
    x.apply_op1(RmsNorm { weight: weight.clone(), eps, kernels: Kernels::detect() })
}

impl RmsNorm {
    fn inverse_rms(&self, x: &[f32]) -> f32 {
        1.0 / (self.kernels.dot_f32(x, x) / x.len() as f32 + self.eps).sqrt()
    }

    /// Normalises each row of `x [n, width]`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        let h = self.weight.len();
        y.par_chunks_exact_mut(h).zip(x.par_chunks_exact(h)).with_min_len(super::MIN_ROWS).for_each(|(y, x)| {
            let s = self.inverse_rms(x);
            y.iter_mut().zip(x.iter().zip(self.weight.iter())).for_each(|(y, (x, w))| *y = x * s * w);
        });
        y
    }

    /// Normalises one row `[width]` in place.
    pub fn row_inplace(&self, x: &mut [f32]) {
        let s = self.inverse_rms(x);
        x.iter_mut().zip(self.weight.iter()).for_each(|(x, w)| *x = *x * s * w);
    }

    /// Adds the input's gradient to `dx`, given the output's in `dy`, all `[n, width]`:
    /// `dx += s · w∘dy - x · s³/width · Σ x∘w∘dy`.
    pub fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let h = self.weight.len();
        let rows = dx.par_chunks_exact_mut(h).zip(x.par_chunks_exact(h).zip(dy.par_chunks_exact(h)));
        rows.with_min_len(super::MIN_ROWS).for_each_init(
            || vec![0f32; h],
            |g, (dx, (x, dy))| {
                g.iter_mut().zip(dy.iter().zip(self.weight.iter())).for_each(|(g, (dy, w))| *g = dy * w);
                let (s, c) = self.row_slopes(x, g);
                dx.iter_mut().zip(g.iter().zip(x)).for_each(|(dx, (g, x))| *dx += s * g - c * x);
            },
        );
    }

    /// Turns the gradient of one row's output, `[width]`, into that of its input.
    pub fn row_backward(&self, x: &[f32], dy: &mut [f32]) {
        dy.iter_mut().zip(self.weight.iter()).for_each(|(dy, w)| *dy *= w);
        let (s, c) = self.row_slopes(x, dy);
        dy.iter_mut().zip(x).for_each(|(d, x)| *d = s * *d - c * x);
    }

    /// The factors of `g = w∘dy` and of the input in a row's gradient.
    fn row_slopes(&self, x: &[f32], g: &[f32]) -> (f32, f32) {
        let s = self.inverse_rms(x);
        (s, s * s * s * self.kernels.dot_f32(g, x) / x.len() as f32)
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(self.forward(operand(x, l)?)), l.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let mut dx = vec![0.0; x.elem_count()];
        with_numbers(x, |x| with_numbers(dy, |dy| self.backward(x, dy, &mut dx)))??;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{gradients, wave};

    #[test]
    fn gradient_is_exact() {
        let w = Arc::new(wave(6, 4.0));
        gradients(&[(wave(18, 0.0), vec![3, 6])], |t| rms_norm(&t[0], &w, 1e-5));
    }
}
