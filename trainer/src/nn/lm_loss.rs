//! Cross-entropy of the frozen output head at chosen positions: mean of `-log softmax(h Wᵀ)[target]`.
//!
//! Logits `[rows, vocab]` are made a few rows at a time, forward and again backward, and never kept.

use super::linear::FrozenWeight;
use super::{floats, stored};
use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

struct LmLoss {
    output: FrozenWeight,
    targets: Vec<u32>,
}

/// Rows whose logits are held at once.
const CHUNK: usize = 32;

/// The mean loss over the rows of `h [rows, hidden]` (already normalised).
///
/// # Panics
/// If there are no rows, or not as many as targets.
pub fn lm_loss(h: &Tensor, output: &FrozenWeight, targets: Vec<u32>) -> Result<Tensor> {
    assert!(!targets.is_empty() && h.dims()[0] == targets.len());
    h.apply_op1(LmLoss { output: output.clone(), targets })?.sum_all()
}

impl LmLoss {
    /// Calls `f(first_row, probabilities [rows, vocab])` for each chunk.
    fn each(&self, h: &Tensor, mut f: impl FnMut(usize, Vec<f32>) -> Result<()>) -> Result<()> {
        let (vocab, _) = self.output.dims()?;
        for start in (0..self.targets.len()).step_by(CHUNK) {
            let n = CHUNK.min(self.targets.len() - start);
            let mut p = self.output.apply(&h.narrow(0, start, n)?.contiguous()?)?.flatten_all()?.to_vec1::<f32>()?;
            p.par_chunks_exact_mut(vocab).for_each(|row| conpet_formats::head::log_softmax(row, 1.0));
            f(start, p)?;
        }
        Ok(())
    }
}

impl CustomOp1 for LmLoss {
    fn name(&self) -> &'static str {
        "lm-loss"
    }

    fn cpu_fwd(&self, h: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (vocab, _) = self.output.dims()?;
        let h = Tensor::from_slice(floats(h, l)?, l.shape(), &Device::Cpu)?;
        let n = self.targets.len() as f32;
        let mut out = Vec::with_capacity(self.targets.len());
        self.each(&h, |start, lp| {
            out.extend(lp.chunks_exact(vocab).zip(&self.targets[start..]).map(|(row, t)| -row[*t as usize] / n));
            Ok(())
        })?;
        let len = out.len();
        Ok(stored(out, len))
    }

    /// `dh = (softmax - onehot) · W / rows`, times each row's own incoming gradient.
    fn bwd(&self, h: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (vocab, _) = self.output.dims()?;
        let g = dy.to_vec1::<f32>()?;
        let n = self.targets.len() as f32;
        let mut parts = Vec::new();
        self.each(&h.detach(), |start, mut p| {
            p.par_chunks_exact_mut(vocab).enumerate().for_each(|(i, row)| {
                row.iter_mut().for_each(|v| *v = v.exp() * g[start + i] / n);
                row[self.targets[start + i] as usize] -= g[start + i] / n;
            });
            let rows = p.len() / vocab;
            parts.push(self.output.backward(&Tensor::from_vec(p, (rows, vocab), &Device::Cpu)?)?);
            Ok(())
        })?;
        Ok(Some(Tensor::cat(&parts, 0)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{gradients, wave};

    #[test]
    fn gradient_is_exact_and_the_loss_is_cross_entropy() {
        let w = FrozenWeight::Dense(Tensor::from_vec(wave(7 * 4, 0.0), (7, 4), &Device::Cpu).unwrap());
        gradients(&[(wave(3 * 4, 1.0), vec![3, 4])], |t| lm_loss(&t[0], &w, vec![6, 0, 2]));
        let flat = Tensor::zeros((40, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let loss = lm_loss(&flat, &w, vec![1; 40]).unwrap().to_scalar::<f32>().unwrap();
        assert!((loss - 7f32.ln()).abs() < 1e-5, "uniform logits cost ln(vocab), got {loss}");
    }
}
