//! The matrix product of training: views into slices, multiplied by the `gemm` crate.
//!
//! candle's own product uses the same crate, but copies operands that are not contiguous, asks the system for
//! the number of processors on every call, and cannot add to an existing result. The trainer's only unsafe call
//! is here, behind checked bounds.

#![expect(unsafe_code, reason = "gemm takes pointers; every bound is checked right before")]

use std::ops::Range;

/// The element types, `f32` and `f64`.
pub trait Number: Copy + 'static {
    /// 0 and 1.
    const UNITS: [Self; 2];
}

impl Number for f32 {
    const UNITS: [Self; 2] = [0.0, 1.0];
}

impl Number for f64 {
    const UNITS: [Self; 2] = [0.0, 1.0];
}

/// A strided view of a matrix in a slice.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T = f32> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// The index after the last one that a strided matrix touches.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + (cols - 1) * col_stride + 1 }
}

impl<'a, T: Number> View<'a, T> {
    /// A row-major `[data.len() / cols, cols]`.
    ///
    /// # Panics
    /// If the slice is not whole rows.
    pub fn new(data: &'a [T], cols: usize) -> Self {
        assert!(cols > 0 && data.len().is_multiple_of(cols), "{} numbers in rows of {cols}", data.len());
        Self { data, rows: data.len() / cols, cols, row_stride: cols, col_stride: 1 }
    }

    /// The transpose, without a copy.
    pub fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Some of the columns.
    ///
    /// # Panics
    /// If there are not that many.
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let skip = (range.start * self.col_stride).min(self.data.len());
        Self { data: &self.data[skip..], cols: range.len(), ..self }
    }

    /// Number of rows.
    pub fn height(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn width(&self) -> usize {
        self.cols
    }

    /// The values of a contiguous row-major view.
    ///
    /// # Panics
    /// If it is not row-major, or has gaps.
    pub fn numbers(&self) -> &'a [T] {
        assert!(self.col_stride == 1 && self.row_stride == self.cols, "the matrix has gaps");
        &self.data[..self.rows * self.cols]
    }

    fn check(&self) {
        assert!(extent(self.rows, self.cols, self.row_stride, self.col_stride) <= self.data.len());
    }
}

/// `a · b`, row-major, on this many threads.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul<T: Number>(a: View<'_, T>, b: View<'_, T>, threads: usize) -> Vec<T> {
    let mut out = vec![T::UNITS[0]; a.rows * b.cols];
    let width = b.cols.max(1);
    run(&mut out, width, (a, b), T::UNITS[1], false, threads);
    out
}

/// `out[:, columns] += scale · a · b` for a row-major `out` of rows of `width`.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_add<T: Number>(
    out: &mut [T],
    width: usize,
    columns: Range<usize>,
    a: View<'_, T>,
    b: View<'_, T>,
    scale: T,
    threads: usize,
) {
    assert!(columns.len() == b.cols && columns.end <= width, "columns {columns:?} of {width} for {}", b.cols);
    let skip = columns.start.min(out.len());
    run(&mut out[skip..], width, (a, b), scale, true, threads);
}

fn run<T: Number>(
    out: &mut [T],
    width: usize,
    (a, b): (View<'_, T>, View<'_, T>),
    scale: T,
    add: bool,
    threads: usize,
) {
    assert_eq!(a.cols, b.rows, "product of [{}, {}] and [{}, {}]", a.rows, a.cols, b.rows, b.cols);
    a.check();
    b.check();
    assert!(extent(a.rows, b.cols, width, 1) <= out.len());
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    let signed = |stride: usize| isize::try_from(stride).expect("a stride fits a slice");
    // SAFETY: the largest index of each of the three matrices lies in its slice (checked above);
    // `out` is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            a.rows,
            b.cols,
            a.cols,
            out.as_mut_ptr(),
            1,
            signed(width),
            add,
            a.data.as_ptr(),
            signed(a.col_stride),
            signed(a.row_stride),
            b.data.as_ptr(),
            signed(b.col_stride),
            signed(b.row_stride),
            // gemm computes alpha · out + beta · a · b.
            T::UNITS[1],
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_address_what_they_say() {
        let s: Vec<f32> = (0..24).map(|v| v as f32).collect();
        let a = View::new(&s, 6);
        let one = [1.0; 6];
        let ones = |n| View::new(&one[..n], 1);
        assert_eq!(matmul(a, ones(6), 1), [15.0, 51.0, 87.0, 123.0]);
        assert_eq!(matmul(View::new(&s[6..18], 6).columns(2..4), ones(2), 1), [17.0, 29.0]);
        assert_eq!(matmul(a.t(), ones(4), 2), [36.0, 40.0, 44.0, 48.0, 52.0, 56.0]);
        assert_eq!(matmul(a.columns(1..3).t(), ones(4), 2), [40.0, 44.0]);
        let mut out = vec![1.0; 8];
        matmul_add(&mut out, 2, 1..2, a, ones(6), 2.0, 1);
        assert_eq!(out, [1.0, 31.0, 1.0, 103.0, 1.0, 175.0, 1.0, 247.0]);
        // An empty product adds nothing and writes nothing.
        matmul_add::<f32>(&mut [], 2, 1..2, View::new(&[], 6), ones(6), 1.0, 1);
        assert!(std::panic::catch_unwind(|| matmul(a, ones(5), 1)).is_err());
    }

    #[test]
    fn threads_change_no_bit() {
        let x: Vec<f32> = (0..300 * 200).map(|i| ((i * 7919) % 1000) as f32 / 500.0 - 1.0).collect();
        let (a, b) = (View::new(&x, 200), View::new(&x, 300));
        assert_eq!(matmul(a, b, 1), matmul(a, b, 2));
    }
}
