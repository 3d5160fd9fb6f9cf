//! (IA)³ (Liu et al. 2022): `y = (1 + l) ⊙ y` after linears, and before `down`.

use super::matmul::View;
use super::pet::{Act, At, Group, Layout, Point};
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::ia3;
use std::ops::Range;

/// The scales of a layer.
#[derive(Debug)]
pub struct Ia3(Vec<Piece>);

#[derive(Debug)]
struct Piece {
    point: Point,
    columns: Range<usize>,
    width: usize,
    /// Where `l` lies in the vector.
    l: Range<usize>,
}

impl Ia3 {
    /// Those there are.
    pub fn new(spec: &ModelSpec, at: &mut Layout<'_>) -> Self {
        let mut out = Vec::new();
        for group in Group::ALL {
            let width = group.columns(spec).map(|c| c.1.end).max().unwrap_or(0);
            for (place, columns) in group.columns(spec) {
                let Some((l, _)) = at.take(place, ia3::L) else { continue };
                out.push(match ia3::scales_input(place) {
                    true => Piece { point: Point::Hidden, columns: 0..spec.ffn, width: spec.ffn, l },
                    false => Piece { point: Point::after(group), columns, width, l },
                });
            }
        }
        Self(out)
    }

    fn at(&self, point: Point) -> impl Iterator<Item = &Piece> {
        self.0.iter().filter(move |p| p.point == point)
    }
}

impl Act for Ia3 {
    fn acts(&self, point: Point) -> bool {
        self.at(point).next().is_some()
    }

    /// Keeps the scaled columns as they were, piece by piece: dividing them out again would fail at
    /// `l = -1`.
    fn forward(&self, at: &At<'_>, _x: View<'_>, y: &mut [f32]) -> Vec<f32> {
        let mut kept = Vec::new();
        for p in self.at(at.point) {
            let l = &at.vector[p.l.clone()];
            for y in y.chunks_exact_mut(p.width) {
                let y = &mut y[p.columns.clone()];
                kept.extend_from_slice(y);
                y.iter_mut().zip(l).for_each(|(y, l)| *y *= 1.0 + l);
            }
        }
        kept
    }

    fn backward(
        &self,
        at: &At<'_>,
        _x: View<'_>,
        mut kept: &[f32],
        dy: &mut [f32],
        grad: &mut [f32],
        _dx: Option<&mut [f32]>,
    ) {
        for p in self.at(at.point) {
            let (l, grad) = (&at.vector[p.l.clone()], &mut grad[p.l.clone()]);
            for dy in dy.chunks_exact_mut(p.width) {
                let (y, rest) = kept.split_at(l.len());
                kept = rest;
                let each = dy[p.columns.clone()].iter_mut().zip(y).zip(l.iter().zip(&mut *grad));
                each.for_each(|((dy, y), (l, g))| {
                    *g += *dy * y;
                    *dy *= 1.0 + l;
                });
            }
        }
    }
}
