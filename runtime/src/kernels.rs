//! The arithmetic: dispatch over instruction sets, and the parallel drivers above them.
//!
//! Every operation exists in [`naive`] as plain loops, which are its specification, and in fast forms behind
//! proof tokens: values that exist only if the processor has the instructions. Weights stay quantized in the
//! map. For one token, a weight row is decoded and multiplied in registers; for a batch, a few rows are decoded
//! once into a small buffer and multiplied with all tokens. On AVX2 a batch's activations are turned instead where
//! that is faster (`kernels/tokens.rs`), and weights keep the order of their rows.
//!
//! For quantized weights, activations are rounded to 8 bits (`kernels/input.rs`), as in llama.cpp, and integers
//! are multiplied, unless [`Kernels::exact`] keeps activations in `f32`. For float weights activations stay
//! `f32`, except that for a batch and half-precision weights both are rounded to 16 bits where the processor
//! multiplies 16-bit integers faster than floats ([`Kernels::wide`]). No result depends on the number of
//! threads.

#![expect(unsafe_code, reason = "column-disjoint writes from several threads; vector intrinsics below")]

mod columns;
mod input;
mod low_rank;
mod math;
pub mod naive;
mod panel;
mod product;
mod tokens;
mod wide;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod int16_x86;
#[cfg(target_arch = "x86_64")]
mod int8_x86;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod tokens_avx2;

use crate::aligned::Aligned;
use crate::threads::Threads;
use columns::Columns;
use conpet_formats::model_spec::{Activation, RopeKind};
use conpet_formats::quant::QuantType;
use half::f16;
pub(crate) use low_rank::{LowRank, width as low_rank_width};
use panel::Panel;
use product::Inputs;
use std::cell::RefCell;
use tokens::WideTile;
use wide::WidePanel;

/// A matrix `[rows, cols]` of quantized rows, borrowed from a map.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRef<'a> {
    /// Type of the values.
    pub ty: QuantType,
    /// Rows (outputs).
    pub rows: usize,
    /// Values in a row (inputs).
    pub cols: usize,
    /// The bytes: `rows` rows of whole blocks.
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

/// An instruction set that this processor has, and whether activations are rounded for quantized weights.
#[derive(Debug, Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    /// Activations stay `f32` for quantized weights too.
    exact: bool,
    /// Activations of a batch are rounded less where that costs nothing.
    fine: bool,
}

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

/// Calls the named function of the instruction set in use.
macro_rules! dispatch {
    ($self:expr, $name:ident ( $($arg:expr),* $(,)? )) => {
        match $self.isa {
            $crate::kernels::Isa::Naive => $crate::kernels::naive::Naive.$name($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::Isa::Avx2(isa) => isa.$name($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::kernels::Isa::Avx512(isa) => isa.$name($($arg),*),
            #[cfg(target_arch = "aarch64")]
            $crate::kernels::Isa::Neon(isa) => isa.$name($($arg),*),
        }
    };
}

use dispatch;

/// Rows of float weights decoded at a time for a batch.
const TILE: usize = 2 * Gemm::LANES;

/// A small matrix product in `f32`: `c [rows, cols] = a [rows, k] · b [k, cols]`, or added to `c`.
///
/// Every sum is taken over `k` in order, one fused multiply-add after another, so that grouping
/// never changes a result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gemm<'a> {
    /// Rows `lda` apart.
    pub(crate) a: &'a [f32],
    pub(crate) lda: usize,
    pub(crate) rows: usize,
    /// Rows `ldb` apart.
    pub(crate) b: &'a [f32],
    pub(crate) ldb: usize,
    pub(crate) k: usize,
    /// Columns of `b` and `c`: a multiple of [`Gemm::LANES`].
    pub(crate) cols: usize,
    /// Whether to add to `c` instead of overwriting it.
    pub(crate) add: bool,
}

impl Gemm<'_> {
    /// Number of columns must be a multiple of this.
    pub(crate) const LANES: usize = 16;

    /// # Panics
    /// If the shapes reach beyond the slices.
    fn check(&self, c: &[f32], ldc: usize) {
        let holds = |len: usize, rows: usize, pitch: usize, width: usize| {
            rows == 0 || width <= pitch && (rows - 1) * pitch + width <= len
        };
        assert!(self.cols.is_multiple_of(Self::LANES));
        assert!(holds(self.a.len(), self.rows, self.lda, self.k));
        assert!(holds(self.b.len(), self.k, self.ldb, self.cols));
        assert!(holds(c.len(), self.rows, ldc, self.cols));
    }
}

/// A thread's work space, which grows as needed and is kept.
#[derive(Default)]
struct Scratch {
    /// Rows as floats, `[rows, k]`, and transposed, `[k, rows]`.
    tile: Aligned<f32>,
    turned: Aligned<f32>,
    /// Rows as integer codes.
    panel: Panel,
    wide: WidePanel,
    wide_tile: WideTile,
    /// Products of the tile or the panel with the batch.
    products: Aligned<f32>,
    /// The same turned, to be added to.
    sums: Aligned<f32>,
}

impl Scratch {
    /// Makes room for `len` floats, plain and transposed.
    fn reserve_tile(&mut self, len: usize) {
        self.tile.reserve(len);
        self.turned.reserve(len);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// Activations as products need them; filled by the thread that asks for one.
    static INPUT: RefCell<Inputs> = RefCell::default();
}

impl Kernels {
    /// The fastest set this processor has.
    pub fn detect() -> Self {
        Self::all().pop().unwrap_or(Self::naive())
    }

    /// The plain loops, which every processor can run.
    pub fn naive() -> Self {
        Self { isa: Isa::Naive, exact: false, fine: false }
    }

    /// Every set this processor has, slowest first.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Isa::Naive];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(avx2::Avx2::detect().map(Isa::Avx2));
            all.extend(avx2::Avx2::detect_vnni().map(Isa::Avx2));
            all.extend(avx512::Avx512::detect().map(Isa::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        all.extend(neon::Neon::all().into_iter().map(Isa::Neon));
        all.into_iter().map(|isa| Self { isa, exact: false, fine: false }).collect()
    }

    /// The set with this name, if the processor has it.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::all().into_iter().find(|k| k.name() == name)
    }

    /// The same set with activations left in `f32`: slower, but comparable with a trainer that computes in `f32`.
    pub fn exact(self) -> Self {
        Self { exact: true, ..self }
    }

    /// The same set with activations of a batch that meet eight-bit weights (Q8_0) rounded to 1 in 8,190 of the
    /// largest of 32 instead of 1 in 254, if that costs nothing: on AVX2 without VNNI.
    pub fn fine(self) -> Self {
        Self { fine: true, ..self }
    }

    /// Whether [`Kernels::fine`] was asked for and changes something.
    fn finer(self) -> bool {
        self.fine
            && match self.isa {
                Isa::Naive => true,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(isa) => isa.turns_wide(),
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(_) => false,
                #[cfg(target_arch = "aarch64")]
                Isa::Neon(_) => false,
            }
    }

    /// Whether half-precision weights of a batch, and activations that meet them, are rounded to 16-bit
    /// integers: at most 1 in 16,382 and 8,190 of the largest of 32.
    pub fn wide(self) -> bool {
        !self.exact
            && match self.isa {
                Isa::Naive => true,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx2(_) => true,
                #[cfg(target_arch = "x86_64")]
                Isa::Avx512(_) => true,
                #[cfg(target_arch = "aarch64")]
                Isa::Neon(_) => false,
            }
    }

    /// Its name: `naive`, `avx2`, `avxvnni`, `avx512`, `neon`, `dotprod`, `i8mm`.
    pub fn name(self) -> &'static str {
        match self.isa {
            Isa::Naive => "naive",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(isa) => isa.name(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon(isa) => isa.name(),
        }
    }

    /// `y [n, rows] = x [n, cols] · wᵀ`.
    ///
    /// # Panics
    /// If the lengths do not fit. The same holds for all functions here.
    pub fn matmul(self, threads: &Threads, w: MatrixRef<'_>, x: &[f32], y: &mut [f32], n: usize) {
        self.matmul_many(threads, [(w, y, None)], x, n);
    }

    /// Products of several weights with one input, in one parallel region, each with its LoRA's addition.
    pub(crate) fn matmul_many<const P: usize>(
        self,
        threads: &Threads,
        parts: [(MatrixRef<'_>, &mut [f32], Option<LowRank<'_>>); P],
        x: &[f32],
        n: usize,
    ) {
        let outs = parts.map(|(w, y, add)| {
            let fits = x.len() == n * w.cols && y.len() == n * w.rows && add.is_none_or(|l| l.b.rows == w.rows);
            assert!(fits, "matmul of {}x{} with {n} rows", w.rows, w.cols);
            (w, Columns::new(y, w.rows), add)
        });
        let forms = outs.each_ref().map(|(w, _, _)| self.form(w.ty, w.cols, n));
        let step = if forms.iter().all(|f| f.turned()) { tokens::ROWS } else { panel::ROWS };
        let total: usize = outs.iter().map(|(w, _, _)| w.rows.next_multiple_of(step)).sum();
        self.with_operand(threads, x, n, &forms, |x| {
            self.run(threads, (total, step), x.x.len(), |range| {
                let mut start = 0;
                for ((w, out, add), form) in outs.iter().zip(forms) {
                    let mine = range.start.max(start)..range.end.min(start + w.rows);
                    if mine.start < mine.end {
                        let rows = mine.start - start..mine.end - start;
                        let product = if form.turned() { Self::turned_product } else { Self::product };
                        product(self, form, *w, rows, x, out, *add);
                    }
                    start += w.rows.next_multiple_of(step);
                }
            });
        });
    }

    /// Decodes one row into `out [cols]`.
    pub fn dequantize_row(self, w: MatrixRef<'_>, row: usize, out: &mut [f32]) {
        dispatch!(self, dequantize(w.ty, w.rows(row..row + 1), out));
    }

    /// `out = x / rms(x) · weight`, `rms(x) = sqrt(mean(x²) + eps)` (Zhang & Sennrich 2019).
    pub fn rms_norm(self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        let s = self.inverse_rms(x, eps);
        out.iter_mut().zip(x.iter().zip(weight)).for_each(|(o, (x, w))| *o = x * s * w);
    }

    /// [`Kernels::rms_norm`] in place.
    pub fn rms_norm_inplace(self, x: &mut [f32], weight: &[f32], eps: f32) {
        let s = self.inverse_rms(x, eps);
        x.iter_mut().zip(weight).for_each(|(x, w)| *x = *x * s * w);
    }

    /// `out = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias` (Ba et al. 2016).
    pub fn layer_norm(self, x: &[f32], [weight, bias]: [&[f32]; 2], eps: f32, out: &mut [f32]) {
        out.copy_from_slice(x);
        self.layer_norm_inplace(out, [weight, bias], eps);
    }

    /// [`Kernels::layer_norm`] in place.
    pub fn layer_norm_inplace(self, x: &mut [f32], [weight, bias]: [&[f32]; 2], eps: f32) {
        assert!(x.len() == weight.len() && x.len() == bias.len());
        dispatch!(self, layer_norm(x, weight, bias, eps));
    }

    /// `x /= rms(x)`, with eps 1e-6 and no weight.
    pub fn rms_normalise(self, x: &mut [f32]) {
        let s = self.inverse_rms(x, 1e-6);
        x.iter_mut().for_each(|v| *v *= s);
    }

    fn inverse_rms(self, x: &[f32], eps: f32) -> f32 {
        1.0 / (dispatch!(self, dot_f32(x, x)) / x.len() as f32 + eps).sqrt()
    }

    /// A small product in `f32`; rows of `c` are `ldc` apart.
    pub(crate) fn gemm(self, g: Gemm<'_>, c: &mut [f32], ldc: usize) {
        g.check(c, ldc);
        dispatch!(self, gemm(g, c, ldc));
    }

    /// `out [cols, rows]` from `x [rows, cols]`; rows of `x` are `ldx` apart, rows of `out` `ldo`.
    pub(crate) fn transpose(self, x: &[f32], ldx: usize, rows: usize, cols: usize, out: &mut [f32], ldo: usize) {
        assert!(cols <= ldx && rows <= ldo && (rows == 0 || (rows - 1) * ldx + cols <= x.len()));
        assert!(cols == 0 || (cols - 1) * ldo + rows <= out.len());
        dispatch!(self, transpose(x, ldx, rows, cols, out, ldo));
    }

    /// Half precision to single.
    pub(crate) fn widen(self, x: &[f16], out: &mut [f32]) {
        assert_eq!(x.len(), out.len());
        dispatch!(self, widen(x, out));
    }

    /// One step of a softmax computed block by block: `x = exp(x - m)` with `m` the largest of `x` and `max`;
    /// returns `m` and the sum of `x`.
    pub(crate) fn softmax_step(self, x: &mut [f32], max: f32) -> (f32, f32) {
        dispatch!(self, softmax_step(x, max))
    }

    /// `x = exp(x - max) / Σ`.
    pub fn softmax(self, x: &mut [f32]) {
        dispatch!(self, softmax(x));
    }

    /// `gate = activation(gate) · up` (Shazeer 2020: SwiGLU, GEGLU).
    pub fn gate_mul(self, activation: Activation, gate: &mut [f32], up: &[f32]) {
        assert_eq!(gate.len(), up.len());
        dispatch!(self, gate_mul(activation, gate, up));
    }

    /// `x = activation(x)`.
    pub fn activate(self, activation: Activation, x: &mut [f32]) {
        dispatch!(self, activate(activation, x));
    }

    /// `x = cap · tanh(x / cap)`.
    pub fn soft_cap(self, x: &mut [f32], cap: f32) {
        dispatch!(self, soft_cap(x, cap));
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

    /// `acc += a · v`.
    pub fn axpy_f32(self, acc: &mut [f32], a: f32, v: &[f32]) {
        assert_eq!(acc.len(), v.len());
        dispatch!(self, axpy_f32(acc, a, v));
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

/// True for types that store blocks of small integers.
fn is_blocks(ty: QuantType) -> bool {
    ty.block_len() > 1
}

#[cfg(test)]
mod tests;
