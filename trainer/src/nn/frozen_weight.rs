//! A frozen weight: `y = x Wᵀ`, with a bias in some families, and gradient `dx = dy W`. `W` gets no gradient
//! and is not an input of any graph.
//!
//! It is either decoded once to `f32` (fast) or left quantized in the mapped base and decoded tile by tile at
//! each use (small: one tile is in memory). Both use the same matrix product.

use super::matmul::{View, matmul, matmul_add};
use super::{operand, with_numbers};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use conpet_formats::mmap::Mapped;
use conpet_formats::quant::QuantType;
use conpet_runtime::kernels::{Kernels, MatrixRef};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// Weights decoded at a time: 16 MiB of work space.
const TILE: usize = 4 << 20;

/// A quantized matrix in a mapped file.
#[derive(Debug, Clone)]
pub struct QuantWeight {
    /// The file.
    pub map: Mapped,
    /// Range of its bytes in the file.
    pub bytes: Range<usize>,
    /// Type of the weights.
    pub ty: QuantType,
    /// Number of outputs.
    pub rows: usize,
}

/// A frozen matrix `[rows, cols]`; several quantized ones may be stacked in it.
#[derive(Debug)]
pub struct FrozenWeight {
    /// Number of outputs.
    pub rows: usize,
    /// Number of inputs.
    pub cols: usize,
    form: Form,
    /// Bias `[rows]`, or empty.
    bias: Vec<f32>,
}

#[derive(Debug)]
enum Form {
    Dense(Vec<f32>),
    Quant(Vec<QuantWeight>, Kernels),
}

thread_local! {
    /// Holds one decoded tile; grows as needed and is kept.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

impl FrozenWeight {
    /// A dense matrix `[rows, cols]`.
    ///
    /// # Panics
    /// If the values are not whole rows.
    pub fn dense(cols: usize, numbers: Vec<f32>) -> Self {
        let rows = View::new(&numbers, cols).height();
        Self { rows, cols, form: Form::Dense(numbers), bias: Vec::new() }
    }

    /// Quantized matrices of `cols` columns, stacked.
    ///
    /// # Panics
    /// If a part's bytes do not fill its rows.
    pub fn quantized(cols: usize, parts: Vec<QuantWeight>, kernels: Kernels) -> Self {
        for p in &parts {
            assert_eq!(p.ty.row_bytes(cols).map(|b| b * p.rows), Some(p.bytes.len()), "bytes of a frozen weight");
        }
        let rows = parts.iter().map(|p| p.rows).sum();
        Self { rows, cols, form: Form::Quant(parts, kernels), bias: Vec::new() }
    }

    /// The same weight with a bias `[rows]`, or without one if it is empty.
    ///
    /// # Panics
    /// If the bias has another length.
    #[must_use]
    pub fn with_bias(self, bias: Vec<f32>) -> Self {
        assert!(bias.is_empty() || bias.len() == self.rows, "a bias of {} for {} rows", bias.len(), self.rows);
        Self { bias, ..self }
    }

    /// The same weight, decoded.
    #[must_use]
    pub fn into_dense(self) -> Self {
        let mut numbers = Vec::new();
        if let Form::Quant(..) = self.form {
            numbers.resize(self.rows * self.cols, 0.0);
            self.decode(0..self.rows, &mut numbers);
            return Self { form: Form::Dense(numbers), ..self };
        }
        self
    }

    /// Decodes some rows.
    fn decode(&self, range: Range<usize>, out: &mut [f32]) {
        let Form::Quant(parts, kernels) = &self.form else { return };
        let mut first = 0;
        for p in parts {
            let (from, to) = (range.start.max(first), range.end.min(first + p.rows));
            if from < to {
                let w = MatrixRef { ty: p.ty, rows: p.rows, cols: self.cols, data: &p.map[p.bytes.clone()] };
                let out = &mut out[(from - range.start) * self.cols..(to - range.start) * self.cols];
                out.par_chunks_exact_mut(self.cols)
                    .enumerate()
                    .with_min_len(64)
                    .for_each(|(i, row)| kernels.dequantize_row(w, from - first + i, row));
            }
            first += p.rows;
        }
    }

    /// Hands tiles of rows to `f`, in order.
    fn tiles(&self, mut f: impl FnMut(Range<usize>, View<'_>)) {
        if let Form::Dense(numbers) = &self.form {
            return f(0..self.rows, View::new(numbers, self.cols));
        }
        let step = (TILE / self.cols).max(1);
        let mut scratch = SCRATCH.take();
        for start in (0..self.rows).step_by(step) {
            let range = start..(start + step).min(self.rows);
            scratch.resize(range.len() * self.cols, 0.0);
            self.decode(range.clone(), &mut scratch);
            f(range, View::new(&scratch, self.cols));
        }
        SCRATCH.set(scratch);
    }

    /// `x [n, cols]` to `[n, rows]`, on this many threads.
    pub fn forward(&self, x: View<'_>, threads: usize) -> Vec<f32> {
        let mut y = Vec::new();
        self.tiles(|range, w| {
            if range.len() == self.rows {
                y = matmul(x, w.t(), threads);
            } else {
                y.resize(x.height() * self.rows, 0.0);
                matmul_add(&mut y, self.rows, range, x, w.t(), 1.0, threads);
            }
        });
        if !self.bias.is_empty() {
            y.chunks_exact_mut(self.rows).for_each(|y| y.iter_mut().zip(&self.bias).for_each(|(y, b)| *y += b));
        }
        y
    }

    /// `dy [n, rows]` to `dx [n, cols]`.
    pub fn backward(&self, dy: View<'_>, threads: usize) -> Vec<f32> {
        let mut dx = Vec::new();
        self.tiles(|range, w| {
            if dx.is_empty() {
                dx = matmul(dy.columns(range), w, threads);
            } else {
                matmul_add(&mut dx, self.cols, 0..self.cols, dy.columns(range), w, 1.0, threads);
            }
        });
        dx
    }
}

/// The operator from `[n, in]` to `[n, out]`.
#[derive(Debug, Clone)]
pub struct FrozenLinear {
    /// The weight `W`.
    pub weight: Arc<FrozenWeight>,
    /// Threads that multiply.
    pub threads: usize,
}

impl CustomOp1 for FrozenLinear {
    fn name(&self) -> &'static str {
        "frozen-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = View::new(operand(x, l)?, self.weight.cols);
        Ok((CpuStorage::F32(self.weight.forward(x, self.threads)), (x.height(), self.weight.rows).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let dx = with_numbers(dy, |dy| self.weight.backward(View::new(dy, self.weight.rows), self.threads))?;
        Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{gradients, wave};
    use conpet_formats::quant;

    fn quantized(cols: usize, parts: &[(QuantType, usize)]) -> FrozenWeight {
        let part = |(i, (ty, rows)): (usize, &(QuantType, usize))| {
            let bytes = quant::quantize(*ty, &wave(rows * cols, i as f32)).unwrap();
            QuantWeight { bytes: 0..bytes.len(), map: Mapped::from_vec(bytes), ty: *ty, rows: *rows }
        };
        FrozenWeight::quantized(cols, parts.iter().enumerate().map(part).collect(), Kernels::detect())
    }

    const STACK: [(QuantType, usize); 3] = [(QuantType::Q8_0, 5), (QuantType::Q4_1, 9), (QuantType::F16, 2)];

    #[test]
    fn gradients_are_exact_for_dense_and_quantized_weights() {
        let biased = quantized(32, &STACK).with_bias(wave(16, 5.0));
        for w in [quantized(32, &STACK), quantized(32, &STACK).into_dense(), biased] {
            let op = FrozenLinear { weight: Arc::new(w), threads: 2 };
            gradients(&[(wave(3 * 32, 0.0), vec![3, 32])], |t| t[0].apply_op1(op.clone()));
        }
    }

    #[test]
    fn a_frozen_argument_gets_no_gradient() {
        let x = Tensor::zeros((3, 32), candle_core::DType::F32, &candle_core::Device::Cpu).unwrap();
        let op = FrozenLinear { weight: Arc::new(quantized(32, &STACK)), threads: 1 };
        assert!(op.bwd(&x, &x, &x).unwrap().is_none());
    }

    #[test]
    fn quantized_equals_its_decoded_self() {
        let (q, d) = (quantized(32, &STACK), quantized(32, &STACK).into_dense());
        let (x, dy) = (wave(4 * 32, 0.5), wave(4 * 16, 1.5));
        assert_eq!(q.forward(View::new(&x, 32), 1), d.forward(View::new(&x, 32), 2), "same product, same bits");
        assert_eq!(q.backward(View::new(&dy, 16), 1), d.backward(View::new(&dy, 16), 2));
        let mut rows = vec![0.0; 3 * 32];
        q.decode(4..7, &mut rows);
        let Form::Dense(all) = &d.form else { panic!("decoded above") };
        assert_eq!(rows, all[4 * 32..7 * 32], "ranges cross parts");
    }

    #[test]
    fn a_bias_is_added_to_every_row() {
        let (x, b) = (wave(2 * 32, 0.5), wave(16, 5.0));
        let bare = quantized(32, &STACK).forward(View::new(&x, 32), 1);
        let with = quantized(32, &STACK).with_bias(b.clone()).into_dense().forward(View::new(&x, 32), 1);
        let want: Vec<f32> = bare.iter().zip(b.iter().cycle()).map(|(y, b)| y + b).collect();
        assert_eq!(with, want);
    }

    #[test]
    fn tiles_of_a_large_weight_add_up() {
        let (rows, cols) = (TILE / 4096 + 3, 4096);
        let (q, d) = (quantized(cols, &[(QuantType::F16, rows)]), quantized(cols, &[(QuantType::F16, rows)]));
        let d = d.into_dense();
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-3 * (1.0 + b.abs()));
        let (x, dy) = (wave(2 * cols, 0.0), wave(2 * rows, 1.0));
        // Sums of 4,096 products of size about 1, cut at different places.
        assert!(near(&q.forward(View::new(&x, cols), 2), &d.forward(View::new(&x, cols), 2)));
        assert!(near(&q.backward(View::new(&dy, rows), 2), &d.backward(View::new(&dy, rows), 2)));
    }
}
