//! Biases of linears and norms (Ben Zaken et al. 2022): `y += b`.

use super::act::{Act, At};
use super::kind::Trainable;
use super::plan::{Layout, Plan};
use super::point::{Point, Spot};
use crate::nn::matmul::View;
use conpet_formats::pet::bias::{B, Bias as Spec};
use std::ops::Range;

impl Trainable for Spec {
    fn enter(&self, plan: &mut Plan, layout: &mut Layout<'_>) {
        let mut biases = Vec::new();
        for (place, spot) in layout.spots(self) {
            biases.extend(layout.take(place, B).map(|(b, _)| (spot, b)));
        }
        plan.add(Bias(biases));
    }
}

/// The biases of a layer: each one's spot in the layer, and its range in the vector.
#[derive(Debug)]
struct Bias(Vec<(Spot, Range<usize>)>);

impl Bias {
    fn at(&self, point: Point) -> impl Iterator<Item = &(Spot, Range<usize>)> {
        self.0.iter().filter(move |(spot, _)| spot.point == point)
    }
}

impl Act for Bias {
    fn acts(&self, point: Point) -> bool {
        self.at(point).next().is_some()
    }

    fn forward(&self, at: &At<'_>, _x: View<'_>, y: &mut [f32]) -> Vec<f32> {
        for (spot, b) in self.at(at.point) {
            let b = &at.vector[b.clone()];
            y.chunks_exact_mut(spot.width).for_each(|y| at.kernels.add(&mut y[spot.columns.clone()], b));
        }
        Vec::new()
    }

    fn backward(
        &self,
        at: &At<'_>,
        _x: View<'_>,
        _kept: &[f32],
        dy: &mut [f32],
        grad: &mut [f32],
        _dx: Option<&mut [f32]>,
    ) {
        for (spot, b) in self.at(at.point) {
            let grad = &mut grad[b.clone()];
            dy.chunks_exact(spot.width).for_each(|dy| at.kernels.add(grad, &dy[spot.columns.clone()]));
        }
    }
}
