//! Norms with frozen weights, for each token:
//! RMSNorm (Zhang & Sennrich 2019) `y_i = w_i · x_i · s`, `s = 1 / sqrt(mean(x²) + eps)`;
//! LayerNorm (Ba et al. 2016) `y_i = w_i · c_i · s + b_i`, `c = x - mean(x)`, `s = 1 / sqrt(mean(c²) + eps)`.

use super::{operand, with_numbers};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use conpet_formats::model_spec::NormKind;
use conpet_runtime::kernels::Kernels;
use conpet_runtime::norm::NormRef;
use rayon::prelude::*;
use std::sync::Arc;

/// A norm over rows of its weight's width.
#[derive(Debug, Clone)]
pub struct Norm {
    /// How it normalises.
    pub kind: NormKind,
    /// Weight `[width]`.
    pub weight: Arc<Vec<f32>>,
    /// Bias `[width]`; empty for RMSNorm.
    pub bias: Arc<Vec<f32>>,
    /// Constant added to the mean square.
    pub eps: f32,
    /// Instruction set.
    pub kernels: Kernels,
}

impl Norm {
    /// A norm of a base.
    pub fn new(norm: NormRef<'_>, kernels: Kernels) -> Self {
        let [weight, bias] = [norm.weight, norm.bias].map(|v| Arc::new(v.to_vec()));
        Self { kind: norm.kind, weight, bias, eps: norm.eps, kernels }
    }

    /// An RMSNorm whose weights are 1.
    pub fn plain_rms(width: usize, eps: f32) -> Self {
        let weight = Arc::new(vec![1.0; width]);
        Self { kind: NormKind::Rms, weight, bias: Arc::default(), eps, kernels: Kernels::detect() }
    }

    /// Normalises each row of a tensor `[n, width]`.
    ///
    /// # Errors
    /// If it is not of that width.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1(self.clone())
    }

    fn row(&self) -> NormRef<'_> {
        NormRef { kind: self.kind, eps: self.eps, weight: &self.weight, bias: &self.bias }
    }

    /// Normalises each row of `x [n, width]`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        let mut y = vec![0.0; x.len()];
        let h = self.weight.len();
        let rows = y.par_chunks_exact_mut(h).zip(x.par_chunks_exact(h)).with_min_len(super::MIN_ROWS);
        rows.for_each(|(y, x)| self.row().row(self.kernels, x, y));
        y
    }

    /// Normalises one row `[width]` in place.
    pub fn row_inplace(&self, x: &mut [f32]) {
        self.row().row_inplace(self.kernels, x);
    }

    /// Adds the input's gradient to `dx`, given the output's in `dy`, all `[n, width]`.
    pub fn backward(&self, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        let h = self.weight.len();
        let rows = dx.par_chunks_exact_mut(h).zip(x.par_chunks_exact(h).zip(dy.par_chunks_exact(h)));
        rows.with_min_len(super::MIN_ROWS).for_each_init(
            || vec![0f32; h],
            |g, (dx, (x, dy))| {
                g.copy_from_slice(dy);
                self.row_backward(x, g);
                dx.iter_mut().zip(g.iter()).for_each(|(dx, g)| *dx += g);
            },
        );
    }

    /// Turns the gradient of one row's output, `[width]`, into that of its input: with `g = w∘dy`,
    /// `dx = s·g - x · s³ · mean(x∘g)` for RMSNorm, `dx = s·(g - mean(g)) - c · s³ · mean(c∘g)` for LayerNorm.
    pub fn row_backward(&self, x: &[f32], dy: &mut [f32]) {
        let (n, k) = (x.len() as f32, self.kernels);
        dy.iter_mut().zip(self.weight.iter()).for_each(|(dy, w)| *dy *= w);
        let (mean, mean_g) = match self.kind {
            NormKind::Rms => (0.0, 0.0),
            NormKind::Layer => (x.iter().sum::<f32>() / n, dy.iter().sum::<f32>() / n),
        };
        let centred: Vec<f32>;
        let c = if mean == 0.0 {
            x
        } else {
            centred = x.iter().map(|v| v - mean).collect();
            &centred
        };
        let s = 1.0 / (k.dot_f32(c, c) / n + self.eps).sqrt();
        let slope = s * s * s * k.dot_f32(c, dy) / n;
        dy.iter_mut().zip(c).for_each(|(d, c)| *d = s * (*d - mean_g) - slope * c);
    }
}

impl CustomOp1 for Norm {
    fn name(&self) -> &'static str {
        "norm"
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
        for kind in [NormKind::Rms, NormKind::Layer] {
            let bias = Arc::new(if kind == NormKind::Layer { wave(6, 2.0) } else { Vec::new() });
            let norm = Norm { kind, weight: Arc::new(wave(6, 4.0)), bias, eps: 1e-5, kernels: Kernels::detect() };
            gradients(&[(wave(18, 0.0), vec![3, 6])], |t| norm.apply(&t[0]));
        }
    }
}
