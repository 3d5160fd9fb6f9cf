//! `silu(gate) · up` (Shazeer 2020).

use super::{floats, numbers, stored};
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor};
use conpet_runtime::kernels::Kernels;
use rayon::prelude::*;

struct SwiGlu(Kernels);

/// Element by element over two tensors of the same shape.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, SwiGlu(Kernels::detect()))
}

const CHUNK: usize = 16 << 10;

impl CustomOp2 for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(&self, g: &CpuStorage, lg: &Layout, u: &CpuStorage, lu: &Layout) -> Result<(CpuStorage, Shape)> {
        let (mut y, u) = (floats(g, lg)?.to_vec(), floats(u, lu)?);
        y.par_chunks_mut(CHUNK).zip(u.par_chunks(CHUNK)).for_each(|(y, u)| self.0.silu_mul(y, u));
        Ok(stored(y, lg.shape().clone()))
    }

    /// `d gate = dy · up · σ(g)(1 + g(1 - σ(g)))`, `d up = dy · silu(g)`.
    fn bwd(&self, g: &Tensor, u: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (gs, us, dys) = (numbers(g)?, numbers(u)?, numbers(dy)?);
        let (mut dg, mut du) = (gs.clone(), gs);
        let parts = dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK));
        parts.zip(us.par_chunks(CHUNK).zip(dys.par_chunks(CHUNK))).for_each(|((dg, du), (u, dy))| {
            // silu with the gradient as multiplier gives d up at once; then σ follows from it.
            let g0 = dg.to_vec();
            let ones = vec![1.0; g0.len()];
            self.0.silu_mul(du, &ones);
            for i in 0..g0.len() {
                let (g, silu) = (g0[i], du[i]);
                let sigma = if g.abs() > 1e-3 { silu / g } else { 0.5 + 0.25 * g };
                dg[i] = dy[i] * u[i] * sigma * (1.0 + g * (1.0 - sigma));
                du[i] = dy[i] * silu;
            }
        });
        let wrap = |v: Vec<f32>| Tensor::from_vec(v, g.shape(), g.device()).map(Some);
        Ok((wrap(dg)?, wrap(du)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{gradients, wave};

    #[test]
    fn gradients_are_exact() {
        let mut g = wave(12, 0.0);
        g[3] = 0.0;
        g[4] = -6.0;
        gradients(&[(g, vec![2, 6]), (wave(12, 5.0), vec![2, 6])], |t| swiglu(&t[0], &t[1]));
    }
}
