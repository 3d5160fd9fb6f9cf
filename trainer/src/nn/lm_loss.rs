//! Cross-entropy of the frozen output head at chosen positions: mean of `-log softmax(h Wᵀ)[target]`.
//!
//! Logits `[rows, vocab]` are computed a few rows at a time, in the forward and again in the backward pass, and
//! never kept.

use super::frozen_weight::FrozenWeight;
use super::matmul::View;
use super::{operand, with_numbers};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

struct LmLoss {
    output: Arc<FrozenWeight>,
    targets: Vec<u32>,
    threads: usize,
}

/// Rows whose logits are held at once.
const CHUNK: usize = 32;

/// The mean loss over the rows of `h [rows, hidden]` (already normalised), on this many threads.
///
/// # Panics
/// If there are no rows, or not as many as targets.
pub fn lm_loss(h: &Tensor, output: &Arc<FrozenWeight>, targets: Vec<u32>, threads: usize) -> Result<Tensor> {
    assert!(!targets.is_empty() && h.dims()[0] == targets.len());
    h.apply_op1(LmLoss { output: output.clone(), targets, threads })?.sum_all()
}

impl LmLoss {
    /// Calls `f(first_row, log-probabilities [rows, vocab])` for each chunk of rows of `h`.
    fn each(&self, h: &[f32], mut f: impl FnMut(usize, Vec<f32>)) {
        for (i, h) in h.chunks(CHUNK * self.output.cols).enumerate() {
            let mut p = self.output.forward(View::new(h, self.output.cols), self.threads);
            p.par_chunks_exact_mut(self.output.rows).for_each(|row| conpet_formats::head::log_softmax(row, 1.0));
            f(i * CHUNK, p);
        }
    }
}

impl CustomOp1 for LmLoss {
    fn name(&self) -> &'static str {
        "lm-loss"
    }

    fn cpu_fwd(&self, h: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (vocab, n) = (self.output.rows, self.targets.len());
        let mut out = Vec::with_capacity(n);
        self.each(operand(h, l)?, |start, lp| {
            let rows = lp.chunks_exact(vocab).zip(&self.targets[start..]);
            out.extend(rows.map(|(row, t)| -row[*t as usize] / n as f32));
        });
        Ok((CpuStorage::F32(out), n.into()))
    }

    /// `dh = (softmax - onehot) · W / rows`, times each row's own incoming gradient.
    fn bwd(&self, h: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (vocab, n) = (self.output.rows, self.targets.len() as f32);
        let g = dy.to_vec1::<f32>()?;
        let mut dh = Vec::with_capacity(h.elem_count());
        with_numbers(h, |h| {
            self.each(h, |start, mut p| {
                p.par_chunks_exact_mut(vocab).enumerate().for_each(|(i, row)| {
                    row.iter_mut().for_each(|v| *v = v.exp() * g[start + i] / n);
                    row[self.targets[start + i] as usize] -= g[start + i] / n;
                });
                dh.extend(self.output.backward(View::new(&p, vocab), self.threads));
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
        let w = Arc::new(FrozenWeight::dense(4, wave(7 * 4, 0.0)));
        gradients(&[(wave(3 * 4, 1.0), vec![3, 4])], |t| lm_loss(&t[0], &w, vec![6, 0, 2], 2));
        let flat = Tensor::zeros((40, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let loss = lm_loss(&flat, &w, vec![1; 40], 1).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 7f32.ln()).abs() < 1e-5, "uniform logits cost ln(vocab), got {loss}");
    }
}
