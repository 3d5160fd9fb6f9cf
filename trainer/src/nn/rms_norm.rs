//! RMSNorm with a frozen weight: `y = x / rms(x) · w` (Zhang & Sennrich 2019).

use super::{floats, numbers, stored};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

struct RmsNorm {
    weight: Arc<Vec<f32>>,
    eps: f32,
}

/// Normalises each row of `x [n, hidden]`.
pub fn rms_norm(x: &Tensor, weight: &Arc<Vec<f32>>, eps: f32) -> Result<Tensor> {
    x.apply_op1(RmsNorm { weight: weight.clone(), eps })
}

impl RmsNorm {
    fn inverse_rms(&self, x: &[f32]) -> f32 {
        let ms = x.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>() / x.len() as f64;
        (1.0 / (ms + f64::from(self.eps)).sqrt()) as f32
    }
}

impl CustomOp1 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = floats(x, l)?;
        let h = self.weight.len();
        let mut y = vec![0.0; x.len()];
        y.par_chunks_exact_mut(h).zip(x.par_chunks_exact(h)).with_min_len(32).for_each(|(y, x)| {
            let s = self.inverse_rms(x);
            y.iter_mut().zip(x.iter().zip(self.weight.iter())).for_each(|(y, (x, w))| *y = x * s * w);
        });
        Ok(stored(y, l.shape().clone()))
    }

    /// `dx = s·(w∘dy) - x · s³/h · Σ x∘w∘dy`, `s = 1/rms`.
    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let h = self.weight.len();
        let (xs, g) = (numbers(x)?, numbers(dy)?);
        let mut dx = vec![0.0; xs.len()];
        let rows = dx.par_chunks_exact_mut(h).zip(xs.par_chunks_exact(h).zip(g.par_chunks_exact(h)));
        rows.with_min_len(32).for_each(|(dx, (x, g))| {
            let s = self.inverse_rms(x);
            let w = &self.weight;
            let dot: f64 = (0..h).map(|i| f64::from(x[i] * w[i]) * f64::from(g[i])).sum();
            let c = (f64::from(s).powi(3) / h as f64 * dot) as f32;
            (0..h).for_each(|i| dx[i] = s * w[i] * g[i] - x[i] * c);
        });
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
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
