//! How a product of weights and activations is taken: which form of each, and the loop over rows.

use super::columns::Columns;
use super::input::{self, Input};
use super::tokens::{self, Blocks, Turned};
use super::wide::{self, WideInput, WideRows, is_half};
use super::{Gemm, INPUT, Kernels, LowRank, MatrixRef, SCRATCH, TILE, dispatch, is_blocks, panel};
use crate::aligned::Aligned;
use crate::threads::Threads;
use conpet_formats::quant::QuantType;
use std::ops::Range;
use zerocopy::FromBytes;

/// Room for the forms of activations.
#[derive(Default)]
pub(super) struct Inputs {
    narrow: Input,
    wide: WideInput,
    floats: Turned,
    halves: Turned,
    bytes: Turned,
}

/// How a matrix is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Weights are decoded to floats and transposed; those of one token, in registers.
    Floats,
    /// Activations are rounded to 8 bits and meet the codes of quantized weights.
    Narrow,
    /// Activations are rounded to 16 bits and meet rounded half-precision weights.
    Wide,
    /// Floats as they lie in their rows meet turned activations.
    TurnedFloats,
    /// Half-precision weights, rounded to 16 bits, meet turned activations.
    TurnedHalves,
    /// Eight-bit weights, widened to 16 bits, meet turned activations.
    TurnedBytes,
}

impl Form {
    /// Whether activations are turned.
    pub(super) fn turned(self) -> bool {
        matches!(self, Self::TurnedFloats | Self::TurnedHalves | Self::TurnedBytes)
    }
}

/// The activations that weights are multiplied with, in all forms that some weight needs.
#[derive(Clone, Copy)]
pub(super) struct Operand<'a> {
    /// As floats, `[n, k]`.
    pub(super) x: &'a [f32],
    n: usize,
    narrow: Option<input::Rows<'a>>,
    wide: Option<WideRows<'a>>,
    floats: Option<Blocks<'a>>,
    halves: Option<Blocks<'a>>,
    bytes: Option<Blocks<'a>>,
}

impl Kernels {
    /// How a matrix of some type and number of columns is multiplied with `n` tokens.
    pub(super) fn form(self, ty: QuantType, cols: usize, n: usize) -> Form {
        let (many, whole) = (n > 1, cols.is_multiple_of(wide::RUN));
        let (turns, turns_wide) = match self.isa {
            #[cfg(target_arch = "x86_64")]
            super::Isa::Avx2(isa) => (many, many && isa.turns_wide()),
            _ => (false, false),
        };
        match ty {
            QuantType::Q8_0 if many && !self.exact && self.finer() => Form::TurnedBytes,
            QuantType::Q8_0 if turns_wide && !self.exact => Form::TurnedBytes,
            _ if is_blocks(ty) && !self.exact => Form::Narrow,
            _ if is_half(ty) && many && whole && self.wide() => {
                if turns_wide {
                    Form::TurnedHalves
                } else {
                    Form::Wide
                }
            }
            _ if turns => Form::TurnedFloats,
            _ => Form::Floats,
        }
    }

    /// Brings `x` into the forms that are needed, and calls a function with the result.
    pub(super) fn with_operand(
        self,
        threads: &Threads,
        x: &[f32],
        n: usize,
        forms: &[Form],
        f: impl FnOnce(Operand<'_>),
    ) {
        INPUT.with_borrow_mut(|room| {
            let has = |form| forms.contains(&form);
            let narrow = has(Form::Narrow).then(|| {
                room.narrow.fill(threads, x, n, |x, row| dispatch!(self, quantize(x, row)));
                room.narrow.rows(n)
            });
            let round = |x: &_, limit, codes: &mut _| dispatch!(self, round_wide(x, limit, codes));
            let wide = has(Form::Wide).then(|| room.wide.fill(threads, x, n, round));
            let floats = has(Form::TurnedFloats).then(|| room.floats.fill(self, threads, x, n));
            let halves = has(Form::TurnedHalves).then(|| room.halves.fill_wide(self, threads, x, n, wide::ACTIVATION));
            let limit = if self.fine { wide::ACTIVATION } else { input::LIMIT };
            let bytes = has(Form::TurnedBytes).then(|| room.bytes.fill_wide(self, threads, x, n, limit));
            f(Operand { x, n, narrow, wide, floats, halves, bytes });
        });
    }

    /// Splits rows over threads, in multiples of `step`, if the work is worth waking them.
    pub(super) fn run(
        self,
        threads: &Threads,
        (rows, step): (usize, usize),
        work_per_row: usize,
        f: impl Fn(Range<usize>) + Sync,
    ) {
        if rows * work_per_row < 1 << 16 { f(0..rows) } else { threads.split(rows, step, f) }
    }

    /// Computes rows `range` of a product and writes them to their columns of `out`.
    pub(super) fn product(
        self,
        form: Form,
        w: MatrixRef<'_>,
        range: Range<usize>,
        x: Operand<'_>,
        out: &Columns<'_>,
        add: Option<LowRank<'_>>,
    ) {
        SCRATCH.with_borrow_mut(|s| {
            let (n, mut start) = (x.n, range.start);
            let narrow = x.narrow.filter(|_| form == Form::Narrow);
            let wide = x.wide.filter(|_| form == Form::Wide);
            let step = if narrow.is_some() && n > 1 { panel::ROWS } else { TILE };
            while start < range.end {
                let rows = step.min(range.end - start);
                let bytes = w.rows(start..start + rows);
                s.products.reserve(n * TILE);
                let mut stride = rows;
                match narrow {
                    Some(x) if n == 1 => dispatch!(self, gemv_int8(w.ty, bytes, x, &mut s.products[..rows])),
                    Some(x) => {
                        stride = panel::ROWS;
                        dispatch!(self, unpack(&mut s.panel, w.ty, bytes, rows, w.cols));
                        dispatch!(self, product(&s.panel, x, &mut s.products[..n * stride]));
                    }
                    None if let Some(x) = wide => {
                        stride = TILE;
                        dispatch!(self, unpack_wide(&mut s.wide, w.ty, bytes, rows, w.cols));
                        dispatch!(self, product_wide(&s.wide, x, &mut s.products[..n * stride]));
                    }
                    None if n == 1 => dispatch!(self, gemv(w.ty, bytes, x.x, &mut s.products[..rows])),
                    None => {
                        stride = TILE;
                        let k = w.cols;
                        let plain = self.decoded(w.ty, bytes, rows * k, &mut s.tile);
                        s.turned.reserve(TILE * k);
                        self.transpose(plain, k, rows, k, &mut s.turned, TILE);
                        let (b, cols) = (&s.turned, rows.next_multiple_of(Gemm::LANES));
                        let product = Gemm { a: x.x, lda: k, rows: n, b, ldb: TILE, k, cols, add: false };
                        self.gemm(product, &mut s.products, stride);
                    }
                }
                if let Some(l) = add {
                    s.reserve_tile(TILE * l.b.cols.max(1));
                    let work = [&mut s.tile[..], &mut s.turned[..]];
                    l.add(self, start..start + rows, n, &mut s.products[..n * stride], stride, work);
                }
                // SAFETY: `split` hands out disjoint row ranges, so no other thread writes these
                // columns of `out` while it lives.
                unsafe { out.write(start, rows, &s.products[..n * stride], stride) };
                start += rows;
            }
        });
    }

    /// As [`Kernels::product`], where activations are turned.
    pub(super) fn turned_product(
        self,
        form: Form,
        w: MatrixRef<'_>,
        range: Range<usize>,
        x: Operand<'_>,
        out: &Columns<'_>,
        add: Option<LowRank<'_>>,
    ) {
        let (k, n) = (w.cols, x.n);
        let x = match form {
            Form::TurnedHalves => x.halves,
            Form::TurnedBytes => x.bytes,
            _ => x.floats,
        };
        let x = x.expect("the operand has the forms that were asked for");
        SCRATCH.with_borrow_mut(|s| {
            for start in range.clone().step_by(tokens::MANY) {
                let rows = tokens::MANY.min(range.end - start);
                let bytes = w.rows(start..start + rows);
                s.products.reserve(tokens::MANY * x.pitch());
                if form == Form::TurnedFloats {
                    let plain = self.decoded(w.ty, bytes, rows * k, &mut s.tile);
                    dispatch!(self, product_turned(plain, rows, x, &mut s.products));
                } else {
                    dispatch!(self, unpack_tile(&mut s.wide_tile, w.ty, bytes, rows, k));
                    dispatch!(self, product_turned_wide(&s.wide_tile, rows, x, &mut s.products));
                }
                let Some(l) = add else {
                    let turn = |from: &[f32], to: *mut f32, pitch| {
                        // SAFETY: by the contract of `write_by`, whose are the arguments.
                        unsafe { dispatch!(self, store_turned(from, x.pitch(), rows, n, to, pitch)) };
                    };
                    // SAFETY: `split` hands out disjoint row ranges, so no other thread writes these
                    // columns of `out` while it lives.
                    unsafe { out.write_by(start, rows, n, &s.products, turn) };
                    continue;
                };
                let stride = tokens::MANY;
                s.sums.reserve(n * stride);
                self.transpose(&s.products, x.pitch(), rows, n, &mut s.sums, stride);
                s.reserve_tile(stride * l.b.cols.max(1));
                let work = [&mut s.tile[..], &mut s.turned[..]];
                l.add(self, start..start + rows, n, &mut s.sums[..n * stride], stride, work);
                // SAFETY: as above.
                unsafe { out.write(start, rows, &s.sums[..n * stride], stride) };
            }
        });
    }

    /// Rows as floats: where they lie, or decoded into `room`.
    fn decoded<'a>(self, ty: QuantType, bytes: &'a [u8], len: usize, room: &'a mut Aligned<f32>) -> &'a [f32] {
        if let Some(plain) = floats(ty, bytes) {
            return plain;
        }
        room.reserve(len);
        dispatch!(self, dequantize(ty, bytes, &mut room[..len]));
        &room[..len]
    }
}

/// The values where they lie, if they need no decoding: copying them would cost as much as reading them.
fn floats(ty: QuantType, bytes: &[u8]) -> Option<&[f32]> {
    if ty == QuantType::F32 && cfg!(target_endian = "little") { <[f32]>::ref_from_bytes(bytes).ok() } else { None }
}
