//! Cross-entropy of the frozen output head at chosen positions: mean of `-log softmax(h Wᵀ)[target]`.
//!
//! Logits `[rows, vocab]` are computed a few rows at a time, in the forward and again in the backward pass, and
//! never kept.

use super::frozen_weight::FrozenWeight;
use super::matmul::View;
use super::{operand, with_numbers};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use conpet_runtime::kernels::Kernels;
use rayon::prelude::*;
use std::sync::Arc;

/// The frozen output head.
#[derive(Debug, Clone)]
pub struct LmHead {
    /// Its matrix `[vocab, hidden]`.
    pub weight: Arc<FrozenWeight>,
    /// Multiplies the product with it.
    pub scale: f32,
    /// Bends the scaled product: `c · tanh(x / c)`.
    pub cap: Option<f32>,
}

struct LmLoss {
    head: LmHead,
    targets: Vec<u32>,
    threads: usize,
}

/// Rows whose logits are held at once.
const CHUNK: usize = 32;

/// The mean loss over the rows of `h [rows, hidden]` (already normalised), on this many threads.
///
/// # Panics
/// If there are no rows, or not as many as targets.
pub fn lm_loss(h: &Tensor, head: LmHead, targets: Vec<u32>, threads: usize) -> Result<Tensor> {
    assert!(!targets.is_empty() && h.dims()[0] == targets.len());
    h.apply_op1(LmLoss { head, targets, threads })?.sum_all()
}

impl LmLoss {
    /// Calls `f(first_row, logits, log-probabilities)`, both `[rows, vocab]`, for each chunk of rows of `h`. Logits
    /// are given only where they are bent.
    fn each(&self, h: &[f32], mut f: impl FnMut(usize, Vec<f32>, Vec<f32>)) {
        let (w, kernels) = (&self.head.weight, Kernels::detect());
        for (i, h) in h.chunks(CHUNK * w.cols).enumerate() {
            let mut p = w.forward(View::new(h, w.cols), self.threads);
            let mut bent = Vec::new();
            if self.head.scale != 1.0 {
                p.par_chunks_exact_mut(w.rows).for_each(|row| row.iter_mut().for_each(|v| *v *= self.head.scale));
            }
            if let Some(cap) = self.head.cap {
                p.par_chunks_exact_mut(w.rows).for_each(|row| kernels.soft_cap(row, cap));
                bent = p.clone();
            }
            p.par_chunks_exact_mut(w.rows).for_each(|row| conpet_formats::head::log_softmax(row, 1.0));
            f(i * CHUNK, bent, p);
        }
    }
}

impl CustomOp1 for LmLoss {
    fn name(&self) -> &'static str {
        "lm-loss"
    }

    fn cpu_fwd(&self, h: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (vocab, n) = (self.head.weight.rows, self.targets.len());
        let mut out = Vec::with_capacity(n);
        self.each(operand(h, l)?, |start, _, lp| {
            let rows = lp.chunks_exact(vocab).zip(&self.targets[start..]);
            out.extend(rows.map(|(row, t)| -row[*t as usize] / n as f32));
        });
        Ok((CpuStorage::F32(out), n.into()))
    }

    /// `dh = (softmax - onehot) · W / rows`, times each row's own incoming gradient, the scale, and the slope of
    /// the bend, `1 - (logit / c)²`.
    fn bwd(&self, h: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (w, n, scale) = (&self.head.weight, self.targets.len() as f32, self.head.scale);
        let vocab = w.rows;
        let g = dy.to_vec1::<f32>()?;
        let mut dh = Vec::with_capacity(h.elem_count());
        with_numbers(h, |h| {
            self.each(h, |start, bent, mut p| {
                p.par_chunks_exact_mut(vocab).enumerate().for_each(|(i, row)| {
                    row.iter_mut().for_each(|v| *v = v.exp() * g[start + i] / n);
                    row[self.targets[start + i] as usize] -= g[start + i] / n;
                    if scale != 1.0 {
                        row.iter_mut().for_each(|v| *v *= scale);
                    }
                    if let Some(cap) = self.head.cap {
                        let slope = |z: f32| 1.0 - (z / cap) * (z / cap);
                        row.iter_mut().zip(&bent[i * vocab..]).for_each(|(v, z)| *v *= slope(*z));
                    }
                });
                dh.extend(w.backward(View::new(&p, vocab), self.threads));
            });
        })?;
        Tensor::from_vec(dh, h.shape(), h.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{gradients, wave};
    use candle_core::Device;

    #[test]
    fn gradient_is_exact_and_the_loss_is_cross_entropy() {
        let weight = Arc::new(FrozenWeight::dense(4, wave(7 * 4, 0.0)));
        let w = LmHead { weight, scale: 1.0, cap: None };
        for head in [w.clone(), LmHead { scale: 0.6, cap: Some(0.8), ..w.clone() }] {
            gradients(&[(wave(3 * 4, 1.0), vec![3, 4])], |t| lm_loss(&t[0], head.clone(), vec![6, 0, 2], 2));
        }
        let flat = Tensor::zeros((40, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let loss = lm_loss(&flat, w, vec![1; 40], 1).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 7f32.ln()).abs() < 1e-5, "uniform logits cost ln(vocab), got {loss}");
    }
}
