//! A sparse delta at the linears of a layer (APET, Su et al. 2023): `y += S x`.
//!
//! It works on states transposed to `[features, tokens]`, so that each position is one operation on contiguous
//! rows. The positions are chosen before training (`sparse/choose.rs`).

mod choose;

use super::act::{Act, At};
use super::kind::{Beginning, Choice, Indices, Trainable};
use super::plan::{Layout, Plan};
use super::point::{Point, Spot};
use crate::nn::matmul::View;
use conpet_formats::Result;
use conpet_formats::pet::Site;
use conpet_formats::pet::sparse::{NAMES, Sparse as Spec};
use std::ops::Range;
use std::sync::Arc;

impl Trainable for Spec {
    fn choose(&self, choice: &Choice<'_>) -> Result<Indices> {
        choose::positions(self, choice)
    }

    /// The values of the positions that were chosen there.
    fn trained(&self, beginning: &Beginning<'_>, site: Site) -> Vec<(&'static str, Vec<usize>)> {
        let chosen = beginning.indices.get(&format!("{site}.{}", NAMES[0]));
        chosen.map(|i| (NAMES[1], vec![i.len()])).into_iter().collect()
    }

    fn enter(&self, plan: &mut Plan, layout: &mut Layout<'_>) {
        let mut pieces = Vec::new();
        for (place, spot) in layout.spots(self) {
            let input = place.shape(layout.spec).1;
            if let Some((index, (values, _))) = layout.integers(place, NAMES[0]).zip(layout.take(place, NAMES[1])) {
                pieces.push(Piece { spot, input, index, values });
            }
        }
        plan.add(Sparse(pieces));
    }
}

/// The deltas of a layer.
#[derive(Debug)]
struct Sparse(Vec<Piece>);

#[derive(Debug)]
struct Piece {
    spot: Spot,
    /// Width of the linear's input.
    input: usize,
    index: Arc<Vec<i32>>,
    /// Range of the values in the vector.
    values: Range<usize>,
}

impl Piece {
    /// Each position's row of the group's output, its column, and its index in the vector.
    fn positions(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let (input, first) = (self.input, self.spot.columns.start);
        let place = move |at: &i32| (first + *at as usize / input, *at as usize % input);
        self.index.iter().map(place).zip(self.values.clone()).map(|((row, col), v)| (row, col, v))
    }
}

/// Transposes `[n, width]` to `[width, n]`.
fn turned(x: &[f32], width: usize) -> Vec<f32> {
    let n = x.len() / width;
    let mut out = vec![0.0; x.len()];
    for (t, row) in x.chunks_exact(width).enumerate() {
        row.iter().enumerate().for_each(|(i, v)| out[i * n + t] = *v);
    }
    out
}

/// Adds the transpose of `[width, n]` to `[n, width]`.
fn add_turned(x: &[f32], width: usize, out: &mut [f32]) {
    let n = x.len() / width;
    for (t, row) in out.chunks_exact_mut(width).enumerate() {
        row.iter_mut().enumerate().for_each(|(i, v)| *v += x[i * n + t]);
    }
}

impl Sparse {
    fn at(&self, point: Point) -> impl Iterator<Item = &Piece> {
        self.0.iter().filter(move |p| p.spot.point == point)
    }

    /// Widths of the input and the output of the linears at a point.
    fn shape(&self, point: Point) -> Option<(usize, usize)> {
        self.at(point).next().map(|p| (p.input, p.spot.width))
    }
}

impl Act for Sparse {
    fn acts(&self, point: Point) -> bool {
        self.at(point).next().is_some()
    }

    fn forward(&self, at: &At<'_>, x: View<'_>, y: &mut [f32]) -> Vec<f32> {
        let Some((input, width)) = self.shape(at.point) else { return Vec::new() };
        let n = x.height();
        let (x, mut sum) = (turned(x.numbers(), input), vec![0.0; y.len()]);
        for (row, col, v) in self.at(at.point).flat_map(Piece::positions) {
            at.kernels.axpy_f32(&mut sum[row * n..(row + 1) * n], at.vector[v], &x[col * n..(col + 1) * n]);
        }
        add_turned(&sum, width, y);
        Vec::new()
    }

    fn backward(
        &self,
        at: &At<'_>,
        x: View<'_>,
        _kept: &[f32],
        dy: &mut [f32],
        grad: &mut [f32],
        dx: Option<&mut [f32]>,
    ) {
        let Some((input, width)) = self.shape(at.point) else { return };
        let n = x.height();
        let (x, dy) = (turned(x.numbers(), input), turned(dy, width));
        for (row, col, v) in self.at(at.point).flat_map(Piece::positions) {
            grad[v] += at.kernels.dot_f32(&dy[row * n..(row + 1) * n], &x[col * n..(col + 1) * n]);
        }
        if let Some(dx) = dx {
            let mut sum = vec![0.0; n * input];
            for (row, col, v) in self.at(at.point).flat_map(Piece::positions) {
                at.kernels.axpy_f32(&mut sum[col * n..(col + 1) * n], at.vector[v], &dy[row * n..(row + 1) * n]);
            }
            add_turned(&sum, input, dx);
        }
    }
}
