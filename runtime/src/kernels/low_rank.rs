//! What a LoRA adds to products (Hu et al. 2022): `y += s · B(Ax)`. `Ax` is computed once for all linears that
//! share an input, and `B` is applied to each block of rows as the product computes it.

use super::columns::Columns;
use super::{Gemm, Kernels, MatrixRef, SCRATCH, TILE, dispatch};
use crate::threads::Threads;
use std::ops::Range;

/// The second half of a LoRA site, to be added to a product.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LowRank<'a> {
    /// `Ax` of several sites side by side, `[n, pitch]`; this site's columns begin at `at`.
    pub(crate) low: &'a [f32],
    pub(crate) pitch: usize,
    pub(crate) at: usize,
    /// `B [out, rank]`, in a float type.
    pub(crate) b: MatrixRef<'a>,
    pub(crate) scale: f32,
}

/// Number of columns of [`Kernels::project`]'s result for factors of these ranks.
pub(crate) fn width(ranks: impl Iterator<Item = usize>) -> usize {
    ranks.sum::<usize>().next_multiple_of(Gemm::LANES)
}

impl Kernels {
    /// `low [n, width] = x [n, k] · [A₁; A₂; ..]ᵀ`; columns beyond the ranks are left undefined.
    pub(crate) fn project<'a>(
        self,
        threads: &Threads,
        factors: impl Iterator<Item = MatrixRef<'a>> + Clone,
        x: &[f32],
        low: &mut [f32],
        n: usize,
    ) {
        let (k, width) = (x.len() / n, width(factors.clone().map(|a| a.rows)));
        assert!(factors.clone().all(|a| a.cols == k && a.rows > 0) && low.len() == n * width);
        if n == 1 {
            let mut rest = low;
            for a in factors {
                let (mine, others) = rest.split_at_mut(a.rows);
                dispatch!(self, gemv(a.ty, a.rows(0..a.rows), x, mine));
                rest = others;
            }
            return;
        }
        SCRATCH.with_borrow_mut(|s| {
            s.reserve_tile(width * k);
            let mut at = 0;
            for a in factors {
                dispatch!(self, dequantize(a.ty, a.rows(0..a.rows), &mut s.tile[at * k..(at + a.rows) * k]));
                at += a.rows;
            }
            self.transpose(&s.tile, k, at, k, &mut s.turned, width);
            // Few rows and many tokens, so the tokens are divided among the threads.
            let turned = &s.turned;
            threads.split_mut(low, width, |first, low| {
                let (a, rows) = (&x[first * k..], low.len() / width);
                self.gemm(Gemm { a, lda: k, rows, b: turned, ldb: width, k, cols: width, add: false }, low, width);
            });
        });
    }
}

impl Kernels {
    /// `y [n, out] += s · B(Ax)`, for tokens whose product was computed together with other tokens'.
    pub(crate) fn add_low_rank(self, threads: &Threads, add: LowRank<'_>, y: &mut [f32], n: usize) {
        assert_eq!(y.len(), n * add.b.rows);
        let out = Columns::new(y, add.b.rows);
        self.run(threads, (add.b.rows, super::panel::ROWS), n * add.b.cols, |range| {
            SCRATCH.with_borrow_mut(|s| {
                for start in range.clone().step_by(TILE) {
                    let rows = TILE.min(range.end - start);
                    s.products.reserve(n * TILE);
                    s.reserve_tile(TILE * add.b.cols);
                    let products = &mut s.products[..n * TILE];
                    // SAFETY: `run` hands out disjoint row ranges, so no other thread touches these columns.
                    unsafe { out.read(start, rows, products, TILE) };
                    add.add(self, start..start + rows, n, products, TILE, [&mut s.tile[..], &mut s.turned[..]]);
                    // SAFETY: as above.
                    unsafe { out.write(start, rows, products, TILE) };
                }
            });
        });
    }
}

impl LowRank<'_> {
    /// Adds rows `range` of `s · B(Ax)` to `products [n, pitch]`, whose columns are those rows.
    pub(super) fn add(
        &self,
        kernels: Kernels,
        range: Range<usize>,
        n: usize,
        products: &mut [f32],
        pitch: usize,
        [tile, turned]: [&mut [f32]; 2],
    ) {
        let (rows, rank) = (range.len(), self.b.cols);
        let bytes = self.b.rows(range);
        if n == 1 {
            let more = &mut tile[..rows];
            dispatch!(kernels, gemv(self.b.ty, bytes, &self.low[self.at..self.at + rank], more));
            products.iter_mut().zip(more).for_each(|(p, m)| *p += self.scale * *m);
            return;
        }
        let (tile, cols) = (&mut tile[..rows * rank], rows.next_multiple_of(Gemm::LANES));
        dispatch!(kernels, dequantize(self.b.ty, bytes, tile));
        tile.iter_mut().for_each(|v| *v *= self.scale);
        kernels.transpose(tile, rank, rows, rank, turned, cols);
        let a = &self.low[self.at..];
        let sum = Gemm { a, lda: self.pitch, rows: n, b: turned, ldb: cols, k: rank, cols, add: true };
        kernels.gemm(sum, products, pitch);
    }
}
