//! A frozen linear layer with a LoRA beside it: `y = x Wᵀ + s · (x Aᵀ) Bᵀ`.
//!
//! `W` is not an input of the graph: no gradient for it is ever computed or kept. It is either
//! dense `f32` (fast: candle's blocked product) or the quantized bytes in the map (small: the
//! runtime's kernels), chosen by [`FrozenWeight`].

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp3, Device, Layout, Result, Shape, Storage, Tensor, bail};
use conpet_formats::mmap::Mapped;
use conpet_formats::quant::QuantType;
use conpet_runtime::kernels::{Kernels, MatrixRef};
use conpet_runtime::threads::Threads;
use std::ops::Range;
use std::sync::Arc;

use super::{floats, numbers, stored};

/// A weight `[out, in]` that never changes.
#[derive(Debug, Clone)]
pub enum FrozenWeight {
    /// As `f32` in memory.
    Dense(Tensor),
    /// As it lies in the base's file.
    Quant(QuantWeight),
}

/// Quantized bytes in a map, and who computes with them.
#[derive(Debug, Clone)]
pub struct QuantWeight {
    /// The mapped base.
    pub map: Mapped,
    /// Where the rows lie.
    pub bytes: Range<usize>,
    /// Their type.
    pub ty: QuantType,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Instruction set.
    pub kernels: Kernels,
    /// Worker threads.
    pub threads: Arc<Threads>,
}

impl QuantWeight {
    fn matrix(&self) -> MatrixRef<'_> {
        MatrixRef { ty: self.ty, rows: self.rows, cols: self.cols, data: &self.map[self.bytes.clone()] }
    }

    /// Decodes it.
    pub fn dense(&self) -> Result<Tensor> {
        let mut out = vec![0.0; self.rows * self.cols];
        for (r, row) in out.chunks_exact_mut(self.cols).enumerate() {
            self.kernels.dequantize_row(self.matrix(), r, row);
        }
        Tensor::from_vec(out, (self.rows, self.cols), &Device::Cpu)
    }
}

impl FrozenWeight {
    /// (outputs, inputs).
    pub fn dims(&self) -> Result<(usize, usize)> {
        match self {
            Self::Dense(w) => w.dims2(),
            Self::Quant(q) => Ok((q.rows, q.cols)),
        }
    }

    /// `x [n, in] · Wᵀ` on raw storage.
    fn forward(&self, x: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let (out, input) = self.dims()?;
        let n = layout.shape().elem_count() / input;
        match self {
            Self::Dense(w) => product(x, layout, w, (n, out, input), true),
            Self::Quant(q) => {
                let mut y = vec![0.0; n * out];
                q.kernels.matmul(&q.threads, q.matrix(), floats(x, layout)?, &mut y, n);
                Ok(CpuStorage::F32(y))
            }
        }
    }

    /// `dy [n, out] · W`: the gradient of the input.
    pub fn backward(&self, dy: &Tensor) -> Result<Tensor> {
        match self {
            Self::Dense(w) => dy.matmul(w),
            Self::Quant(q) => {
                let n = dy.dim(0)?;
                let mut dx = vec![0.0; n * q.cols];
                q.kernels.matmul_t(&q.threads, q.matrix(), &numbers(dy)?, &mut dx, n);
                Tensor::from_vec(dx, (n, q.cols), &Device::Cpu)
            }
        }
    }

    /// `x [n, in] · Wᵀ`, outside any graph.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.detach();
        x.apply_op1_no_bwd(&Linear(self.clone()))
    }
}

/// `x [m, k] · w` with `w [k, n]`, or with `w [n, k]` transposed, on raw storage.
fn product(
    x: &CpuStorage,
    layout: &Layout,
    w: &Tensor,
    (m, n, k): (usize, usize, usize),
    transposed: bool,
) -> Result<CpuStorage> {
    let (storage, w_layout) = w.storage_and_layout();
    let Storage::Cpu(w) = &*storage else { bail!("weights must be in main memory") };
    let w_layout = if transposed { w_layout.transpose(0, 1)? } else { w_layout.clone() };
    x.matmul(w, (1, m, n, k), layout, &w_layout)
}

/// The frozen layer alone.
struct Linear(FrozenWeight);

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }
    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out, input) = self.0.dims()?;
        Ok((self.0.forward(x, l)?, (l.shape().elem_count() / input, out).into()))
    }
    fn bwd(&self, _x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.0.backward(&dy.contiguous()?)?))
    }
}

/// The layer with its LoRA, inputs `x [n, in]`, `A [r, in]`, `B [out, r]`.
struct LoraLinear {
    weight: FrozenWeight,
    scale: f64,
}

impl CustomOp3 for LoraLinear {
    fn name(&self) -> &'static str {
        "lora-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        lx: &Layout,
        a: &CpuStorage,
        la: &Layout,
        b: &CpuStorage,
        lb: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (out, input) = self.weight.dims()?;
        let (n, r) = (lx.shape().elem_count() / input, la.dims()[0]);
        let low = x.matmul(a, (1, n, r, input), lx, &la.transpose(0, 1)?)?;
        let low_layout = Layout::contiguous((n, r));
        let up = low.matmul(b, (1, n, out, r), &low_layout, &lb.transpose(0, 1)?)?;
        let (CpuStorage::F32(mut y), CpuStorage::F32(up)) = (self.weight.forward(x, lx)?, up) else {
            bail!("only f32 is trained on")
        };
        let s = self.scale as f32;
        y.iter_mut().zip(&up).for_each(|(y, u)| *y += s * u);
        Ok(stored(y, (n, out)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        a: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let dy = dy.contiguous()?;
        let low = x.matmul(&a.t()?)?;
        let d_low = (dy.matmul(b)? * self.scale)?;
        let dx = (self.weight.backward(&dy)? + d_low.matmul(a)?)?;
        let da = d_low.t()?.matmul(x)?;
        let db = (dy.t()?.matmul(&low)? * self.scale)?;
        Ok((Some(dx), Some(da), Some(db)))
    }
}

/// `x [n, in]` through the layer, with the LoRA factors if the site has them.
pub fn linear(x: &Tensor, weight: &FrozenWeight, lora: Option<(&Tensor, &Tensor, f64)>) -> Result<Tensor> {
    match lora {
        None => x.apply_op1(Linear(weight.clone())),
        Some((a, b, scale)) => x.apply_op3(a, b, LoraLinear { weight: weight.clone(), scale }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{gradients, wave};
    use conpet_formats::pet::lora::apply_reference;

    fn weights() -> [FrozenWeight; 2] {
        let w = wave(5 * 32, 0.3);
        let bytes = conpet_formats::quant::quantize(QuantType::Q8_0, &w).unwrap();
        let len = bytes.len();
        let quant = QuantWeight {
            map: Mapped::from_vec(bytes),
            bytes: 0..len,
            ty: QuantType::Q8_0,
            rows: 5,
            cols: 32,
            kernels: Kernels::detect(),
            threads: Arc::new(Threads::new(2)),
        };
        [FrozenWeight::Dense(quant.dense().unwrap()), FrozenWeight::Quant(quant)]
    }

    #[test]
    fn gradients_are_exact_for_dense_and_quantized_weights() {
        for w in weights() {
            gradients(&[(wave(3 * 32, 0.0), vec![3, 32])], |t| linear(&t[0], &w, None));
            let inputs =
                [(wave(3 * 32, 0.0), vec![3, 32]), (wave(2 * 32, 1.0), vec![2, 32]), (wave(5 * 2, 2.0), vec![5, 2])];
            gradients(&inputs, |t| linear(&t[0], &w, Some((&t[1], &t[2], 0.7))));
        }
    }

    #[test]
    fn equals_the_scalar_reference() {
        let [dense, quant] = weights();
        let (x, a, b) = (wave(32, 0.0), wave(64, 1.0), wave(10, 2.0));
        let dev = Device::Cpu;
        let t = |v: &[f32], s: (usize, usize)| Tensor::from_slice(v, s, &dev).unwrap();
        let y0 = numbers(&dense.apply(&t(&x, (1, 32))).unwrap()).unwrap();
        let mut want = y0.clone();
        apply_reference(&a, &b, 2, 0.7, &x, &mut want);
        for w in [dense, quant] {
            let y = linear(&t(&x, (1, 32)), &w, Some((&t(&a, (2, 32)), &t(&b, (5, 2)), 0.7))).unwrap();
            for (got, want) in numbers(&y).unwrap().iter().zip(&want) {
                // Sums of 32 products of size about 1 in f32.
                assert!((got - want).abs() < 1e-4, "{got} for {want}");
            }
        }
    }
}
