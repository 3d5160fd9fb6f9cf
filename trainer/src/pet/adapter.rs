//! Bottleneck adapters (Houlsby et al. 2019): `z += U f(D u + b) + c`.

use super::act::{Act, At};
use super::kind::Trainable;
use super::plan::{Layout, Plan};
use super::point::Point;
use crate::nn::add_rows;
use crate::nn::matmul::{View, matmul, matmul_add};
use crate::rng::Stream;
use conpet_formats::pet::adapter::{Adapter as Spec, Form, NAMES};
use conpet_runtime::base::Base;
use std::ops::Range;

impl Trainable for Spec {
    /// D uniform in ±1/√in, so that U, which is zero, has a gradient.
    fn start(&self, _base: &Base, name: &str, shape: &[usize], mut rng: Stream) -> Vec<f32> {
        let n = shape.iter().product();
        if name == NAMES[0] { rng.symmetric(n, 1.0 / (shape[1] as f32).sqrt()) } else { vec![0.0; n] }
    }

    fn enter(&self, plan: &mut Plan, layout: &mut Layout<'_>) {
        let mut pieces = Vec::new();
        for (place, spot) in layout.spots(self) {
            let mut take = |i: usize| layout.take(place, NAMES[i]).map(|x| x.0);
            if let (Some(d), Some(b), Some(u), Some(c)) = (take(0), take(1), take(2), take(3)) {
                pieces.push((spot.point, [d, b, u, c]));
            }
        }
        plan.add(Adapter { spec: *self, hidden: layout.spec.hidden, pieces });
    }
}

/// The adapters of a layer.
#[derive(Debug)]
struct Adapter {
    spec: Spec,
    hidden: usize,
    /// The ranges of `D`, `b`, `U`, `c` in the vector.
    pieces: Vec<(Point, [Range<usize>; 4])>,
}

impl Adapter {
    fn parallel(&self) -> bool {
        self.spec.form == Form::Parallel
    }

    fn at(&self, point: Point) -> Option<&[Range<usize>; 4]> {
        self.pieces.iter().find(|(p, _)| *p == point).map(|(_, at)| at)
    }

    /// `D u + b`, `[n, width]`.
    fn low(&self, at: &At<'_>, [d, b, ..]: &[Range<usize>; 4], u: View<'_>) -> Vec<f32> {
        let mut low = matmul(u, View::new(&at.vector[d.clone()], self.hidden).t(), at.threads);
        low.chunks_exact_mut(self.spec.width).for_each(|low| at.kernels.add(low, &at.vector[b.clone()]));
        low
    }
}

impl Act for Adapter {
    fn acts(&self, point: Point) -> bool {
        self.at(point).is_some()
    }

    /// Keeps its input, unless the layer keeps it anyway.
    fn forward(&self, at: &At<'_>, x: View<'_>, y: &mut [f32]) -> Vec<f32> {
        let Some(piece) = self.at(at.point) else { return Vec::new() };
        let (h, n) = (self.hidden, self.spec.width);
        let kept = if self.parallel() { Vec::new() } else { y.to_vec() };
        let mut low = self.low(at, piece, if self.parallel() { x } else { View::new(&kept, h) });
        low.iter_mut().for_each(|v| *v = self.spec.act.value(*v));
        let up = View::new(&at.vector[piece[2].clone()], n);
        matmul_add(y, h, 0..h, View::new(&low, n), up.t(), 1.0, at.threads);
        y.chunks_exact_mut(h).for_each(|y| at.kernels.add(y, &at.vector[piece[3].clone()]));
        kept
    }

    fn backward(
        &self,
        at: &At<'_>,
        x: View<'_>,
        kept: &[f32],
        dy: &mut [f32],
        grad: &mut [f32],
        dx: Option<&mut [f32]>,
    ) {
        let Some(piece) = self.at(at.point) else { return };
        let [d, b, up, c] = piece.clone();
        let (h, n, t) = (self.hidden, self.spec.width, at.threads);
        let u = if self.parallel() { x } else { View::new(kept, h) };
        let low = self.low(at, piece, u);
        let f: Vec<f32> = low.iter().map(|v| self.spec.act.value(*v)).collect();
        let d_out = View::new(dy, h);
        matmul_add(&mut grad[up.clone()], n, 0..n, d_out.t(), View::new(&f, n), 1.0, t);
        add_rows(dy, &mut grad[c]);
        let mut d_low = matmul(d_out, View::new(&at.vector[up], n), t);
        d_low.iter_mut().zip(&low).for_each(|(d, v)| *d *= self.spec.act.slope(*v));
        add_rows(&d_low, &mut grad[b]);
        let d_low = View::new(&d_low, n);
        matmul_add(&mut grad[d.clone()], h, 0..h, d_low.t(), u, 1.0, t);
        let down = View::new(&at.vector[d], h);
        match (self.parallel(), dx) {
            (false, _) => matmul_add(dy, h, 0..h, d_low, down, 1.0, t),
            (true, Some(dx)) => matmul_add(dx, h, 0..h, d_low, down, 1.0, t),
            (true, None) => {}
        }
    }
}
