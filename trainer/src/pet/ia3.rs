//! (IA)³ (Liu et al. 2022): `y = (1 + l) ⊙ y` after linears, and before `down`.

use super::act::{Act, At};
use super::kind::Trainable;
use super::plan::{Layout, Plan};
use super::point::{Point, Spot};
use crate::nn::matmul::View;
use conpet_formats::pet::ia3::{Ia3 as Spec, L};
use std::ops::Range;

impl Trainable for Spec {
    fn enter(&self, plan: &mut Plan, layout: &mut Layout<'_>) {
        let mut scales = Vec::new();
        for (place, spot) in layout.spots(self) {
            scales.extend(layout.take(place, L).map(|(l, _)| (spot, l)));
        }
        plan.add(Ia3(scales));
    }
}

/// The scales of a layer: each one's spot in the layer, and its range in the vector.
#[derive(Debug)]
struct Ia3(Vec<(Spot, Range<usize>)>);

impl Ia3 {
    fn at(&self, point: Point) -> impl Iterator<Item = &(Spot, Range<usize>)> {
        self.0.iter().filter(move |(spot, _)| spot.point == point)
    }
}

impl Act for Ia3 {
    fn acts(&self, point: Point) -> bool {
        self.at(point).next().is_some()
    }

    /// Keeps the columns as they were before scaling, piece by piece: dividing by the scale would fail at `l = -1`.
    fn forward(&self, at: &At<'_>, _x: View<'_>, y: &mut [f32]) -> Vec<f32> {
        let mut kept = Vec::new();
        for (spot, l) in self.at(at.point) {
            let l = &at.vector[l.clone()];
            for y in y.chunks_exact_mut(spot.width) {
                let y = &mut y[spot.columns.clone()];
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
        for (spot, at_l) in self.at(at.point) {
            let (l, grad) = (&at.vector[at_l.clone()], &mut grad[at_l.clone()]);
            for dy in dy.chunks_exact_mut(spot.width) {
                let (y, rest) = kept.split_at(l.len());
                kept = rest;
                let each = dy[spot.columns.clone()].iter_mut().zip(y).zip(l.iter().zip(&mut *grad));
                each.for_each(|((dy, y), (l, g))| {
                    *g += *dy * y;
                    *dy *= 1.0 + l;
                });
            }
        }
    }
}
