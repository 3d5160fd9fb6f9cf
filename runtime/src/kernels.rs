//! The arithmetic: dispatch over instruction sets, and the parallel drivers above them.
//!
//! Every operation exists in [`naive`] as plain loops, which are its specification, and in fast
//! forms behind proof tokens that exist only if the processor was asked. Weights stay quantized in
//! the map; activations are `f32` throughout. For one token a weight row is decoded and multiplied
//! in registers; for a batch a tile of rows is decoded once into a small scratch and multiplied
//! with all tokens. No result depends on the number of threads.

#![expect(unsafe_code, reason = "column-disjoint writes from several threads; vector intrinsics below")]

mod columns;
mod math;
pub mod naive;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;

use crate::threads::Threads;
use columns::Columns;
use conpet_formats::model_spec::RopeKind;
use conpet_formats::quant::QuantType;
use half::f16;
use std::cell::RefCell;

/// A matrix `[rows, cols]` of quantized rows, borrowed from a map.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRef<'a> {
    /// Type of its numbers.
    pub ty: QuantType,
    /// Rows (outputs).
    pub rows: usize,
    /// Numbers in a row (inputs).
    pub cols: usize,
    /// `rows` rows of whole blocks.
    pub data: &'a [u8],
}

impl<'a> MatrixRef<'a> {
    /// Bytes of one row.
    ///
    /// # Panics
    /// If `cols` is not whole blocks.
    fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.cols).expect("a matrix has rows of whole blocks")
    }

    /// The bytes of some rows.
    fn rows(&self, range: std::ops::Range<usize>) -> &'a [u8] {
        let b = self.row_bytes();
        &self.data[range.start * b..range.end * b]
    }
}

/// An instruction set that is known to be there.
#[derive(Debug, Clone, Copy)]
pub struct Kernels(Isa);

#[derive(Debug, Clone, Copy)]
enum Isa {
    Naive,
    #[cfg(target_arch = "x86_64")]
    Avx2(avx2::Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(avx512::Avx512),
    #[cfg(target_arch = "aarch64")]
    Neon(neon::Neon),
}

/// Calls the same function of whichever instruction set is in force.
macro_rules! dispatch {
    ($self:expr, $name:ident ( $($arg:expr),* $(,)? )) => {
        match $self.0 {
            Isa::Naive => naive::Naive.$name($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(isa) => isa.$name($($arg),*),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(isa) => isa.$name($($arg),*),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(isa) => isa.$name($($arg),*),
        }
    };
}

/// Rows decoded at a time for a batch: their `f32` form stays in the second-level cache.
const TILE: usize = 24;

thread_local! {
    /// A thread's decoded tile and its products; grows once, then stays.
    static TILE_SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

impl Kernels {
    /// The fastest set this processor has.
    pub fn detect() -> Self {
        Self::all().pop().unwrap_or(Self::naive())
    }

    /// Plain loops.
    pub fn naive() -> Self {
        Self(Isa::Naive)
    }

    /// Every set this processor has, slowest first.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::naive()];
        #[cfg(target_arch = "x86_64")]
        all.extend(avx2::Avx2::detect().map(|t| Self(Isa::Avx2(t))));
        #[cfg(target_arch = "x86_64")]
        all.extend(avx512::Avx512::detect().map(|t| Self(Isa::Avx512(t))));
        #[cfg(target_arch = "aarch64")]
        all.extend(neon::Neon::detect().map(|t| Self(Isa::Neon(t))));
        all
    }

    /// The set with this name, if the processor has it.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|k| k.name() == name)
    }

    /// Its name: `naive`, `avx2`, `avx512`, `neon`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Isa::Naive => "naive",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(_) => "neon",
        }
    }

    /// `y [n, rows] = x [n, cols] · wᵀ`.
    ///
    /// # Panics
    /// If the lengths do not fit; so do all functions here.
    pub fn matmul(self, threads: &Threads, w: MatrixRef<'_>, x: &[f32], y: &mut [f32], n: usize) {
        self.matmul_many(threads, &mut [(w, y)], x, n);
    }

    /// `y [n, rows] += scale · x [n, cols] · wᵀ`: the second factor of a LoRA site.
    pub fn matmul_add(self, threads: &Threads, w: MatrixRef<'_>, x: &[f32], y: &mut [f32], n: usize, scale: f32) {
        assert!(x.len() == n * w.cols && y.len() == n * w.rows);
        let out = Columns::new(y, w.rows);
        self.run(threads, w.rows, w.cols * n, |range| self.product(w, range, x, n, &out, Some(scale)));
    }

    /// Several weights on one input, in one parallel region.
    pub fn matmul_many(self, threads: &Threads, parts: &mut [(MatrixRef<'_>, &mut [f32])], x: &[f32], n: usize) {
        let outs: Vec<(MatrixRef<'_>, Columns<'_>)> = parts
            .iter_mut()
            .map(|(w, y)| {
                assert!(
                    x.len() == n * w.cols && y.len() == n * w.rows,
                    "matmul of {}x{} with {n} rows",
                    w.rows,
                    w.cols
                );
                (*w, Columns::new(y, w.rows))
            })
            .collect();
        let total: usize = outs.iter().map(|(w, _)| w.rows).sum();
        let cols = outs.first().map_or(0, |(w, _)| w.cols);
        self.run(threads, total, cols * n, |range| {
            let mut start = 0;
            for (w, out) in &outs {
                let mine = range.start.max(start)..range.end.min(start + w.rows);
                if mine.start < mine.end {
                    self.product(*w, mine.start - start..mine.end - start, x, n, out, None);
                }
                start += w.rows;
            }
        });
    }

    /// Splits rows over threads where that is worth a wake-up.
    fn run(self, threads: &Threads, rows: usize, work_per_row: usize, f: impl Fn(std::ops::Range<usize>) + Sync) {
        if rows * work_per_row < 1 << 16 { f(0..rows) } else { threads.split(rows, 8, f) }
    }

    /// Rows `range` of a product, written to their columns of `out`.
    fn product(
        self,
        w: MatrixRef<'_>,
        range: std::ops::Range<usize>,
        x: &[f32],
        n: usize,
        out: &Columns<'_>,
        add: Option<f32>,
    ) {
        TILE_SCRATCH.with_borrow_mut(|(tile, prod)| {
            let mut start = range.start;
            while start < range.end {
                let rows = TILE.min(range.end - start);
                let bytes = w.rows(start..start + rows);
                if prod.len() < n * TILE {
                    prod.resize(n * TILE, 0.0);
                }
                let prod = &mut prod[..n * rows];
                if n == 1 {
                    dispatch!(self, gemv(w.ty, bytes, x, prod));
                } else if let Some(w32) = as_f32(w.ty, bytes) {
                    dispatch!(self, tile(w32, x, w.cols, prod));
                } else {
                    if tile.len() < TILE * w.cols {
                        tile.resize(TILE * w.cols, 0.0);
                    }
                    let tile = &mut tile[..rows * w.cols];
                    dispatch!(self, dequantize(w.ty, bytes, tile));
                    dispatch!(self, tile(tile, x, w.cols, prod));
                }
                // SAFETY: `split` hands out disjoint row ranges, so no other thread writes these
                // columns of `out` while it lives.
                unsafe { out.write(start, rows, prod, add) };
                start += rows;
            }
        });
    }

    /// Decodes one row into `out [cols]`.
    pub fn dequantize_row(self, w: MatrixRef<'_>, row: usize, out: &mut [f32]) {
        dispatch!(self, dequantize(w.ty, w.rows(row..row + 1), out));
    }

    /// `out = x / rms(x) · weight`, `rms(x) = sqrt(mean(x²) + eps)` (Zhang & Sennrich 2019).
    pub fn rms_norm(self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let ms = dispatch!(self, dot_f32(x, x)) / x.len() as f32;
        let s = 1.0 / (ms + eps).sqrt();
        out.iter_mut().zip(x.iter().zip(weight)).for_each(|(o, (x, w))| *o = x * s * w);
    }

    /// `x /= rms(x)`; eps 1e-6, no weight.
    pub fn rms_normalise(self, x: &mut [f32]) {
        let ms = dispatch!(self, dot_f32(x, x)) / x.len() as f32;
        let s = 1.0 / (ms + 1e-6).sqrt();
        x.iter_mut().for_each(|v| *v *= s);
    }

    /// `x = exp(x - max) / Σ`.
    pub fn softmax(self, x: &mut [f32]) {
        dispatch!(self, softmax(x));
    }

    /// `gate = silu(gate) · up` (Shazeer 2020, SwiGLU).
    pub fn silu_mul(self, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        dispatch!(self, silu_mul(gate, up));
    }

    /// `x += y`.
    pub fn add(self, x: &mut [f32], y: &[f32]) {
        x.iter_mut().zip(y).for_each(|(a, b)| *a += b);
    }

    /// `Σ a · b`.
    pub fn dot_f32(self, a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(self, dot_f32(a, b))
    }

    /// `Σ a · b`, `b` in half precision.
    pub fn dot_f16(self, a: &[f32], b: &[f16]) -> f32 {
        assert_eq!(a.len(), b.len());
        dispatch!(self, dot_f16(a, b))
    }

    /// `acc += a · v`.
    pub fn axpy_f32(self, acc: &mut [f32], a: f32, v: &[f32]) {
        assert_eq!(acc.len(), v.len());
        dispatch!(self, axpy_f32(acc, a, v));
    }

    /// `acc += a · v`, `v` in half precision.
    pub fn axpy_f16(self, acc: &mut [f32], a: f32, v: &[f16]) {
        assert_eq!(acc.len(), v.len());
        dispatch!(self, axpy_f16(acc, a, v));
    }

    /// Rotates each head of `x [heads * head_dim]` by `table [pairs of cos, sin]` (Su et al. 2021).
    pub fn rope(self, x: &mut [f32], head_dim: usize, table: &[f32], kind: RopeKind) {
        let half = table.len() / 2;
        for head in x.chunks_exact_mut(head_dim) {
            for (i, cs) in table.chunks_exact(2).enumerate() {
                let (a, b) = match kind {
                    RopeKind::Adjacent => (2 * i, 2 * i + 1),
                    RopeKind::Halves => (i, i + half),
                };
                let (p, q) = (head[a], head[b]);
                head[a] = p * cs[0] - q * cs[1];
                head[b] = p * cs[1] + q * cs[0];
            }
        }
    }
}

/// F32 weights need no decoding where the map happens to align them.
fn as_f32(ty: QuantType, bytes: &[u8]) -> Option<&[f32]> {
    use zerocopy::FromBytes;
    (ty == QuantType::F32).then(|| <[f32]>::ref_from_bytes(bytes).ok()).flatten()
}

#[cfg(test)]
mod tests;
