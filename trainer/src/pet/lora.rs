//! LoRA at the linears of a layer (Hu et al. 2021): `y += s · B(A x)`.
//!
//! Linears that read the same input (q, k, v; gate, up) form a group: their A factors are stacked and computed
//! as one product. Order in the layer's vector: for each group all A `[rank, in]`, then all B `[out, rank]`.

use super::act::{Act, At};
use super::group::Group;
use super::kind::Trainable;
use super::plan::{Layout, Plan};
use super::point::Point;
use crate::nn::matmul::{View, matmul, matmul_add};
use crate::rng::Stream;
use conpet_formats::pet::lora::{Lora as Spec, NAMES};
use conpet_runtime::base::Base;
use std::ops::Range;

impl Trainable for Spec {
    /// A uniform in ±1/√in: kaiming-uniform with a = √5, as in PEFT and the published code.
    fn start(&self, _base: &Base, name: &str, shape: &[usize], mut rng: Stream) -> Vec<f32> {
        let n = shape.iter().product();
        if name == NAMES[0] { rng.symmetric(n, 1.0 / (shape[1] as f32).sqrt()) } else { vec![0.0; n] }
    }

    fn enter(&self, plan: &mut Plan, layout: &mut Layout<'_>) {
        plan.add(Lora::new(self.scale() as f32, layout));
    }
}

/// One linear's factors within a layer's vector.
#[derive(Debug, Clone)]
struct Factor {
    /// Columns of the group's output.
    out: Range<usize>,
    /// Columns of the group's `A x`.
    low: Range<usize>,
    /// Range of B `[out, rank]` in the vector.
    b: Range<usize>,
}

/// The factors of a group.
#[derive(Debug, Clone, Default)]
struct GroupPlan {
    input: usize,
    output: usize,
    /// Sum of the ranks.
    rank: usize,
    /// Start of the stacked A in the vector.
    a: usize,
    factors: Vec<Factor>,
}

/// The factors of a layer, as ranges of its vector.
#[derive(Debug, Clone)]
struct Lora {
    groups: [GroupPlan; 4],
    /// The factor `s`.
    scale: f32,
}

impl Lora {
    /// The factors that exist. Within a group all A are laid out first, then all B.
    fn new(scale: f32, at: &mut Layout<'_>) -> Self {
        let spec = at.spec;
        let groups = Group::ALL.map(|group| {
            let mut plan = GroupPlan { a: at.len(), ..GroupPlan::default() };
            let mut places = Vec::new();
            for (place, out) in group.columns(spec) {
                (plan.input, plan.output) = (place.shape(spec).1, out.end);
                if let Some((_, shape)) = at.take(place, NAMES[0]) {
                    plan.factors.push(Factor { out, low: plan.rank..plan.rank + shape[0], b: 0..0 });
                    plan.rank += shape[0];
                    places.push(place);
                }
            }
            for (f, place) in plan.factors.iter_mut().zip(places) {
                f.b = at.take(place, NAMES[1]).map_or(0..0, |x| x.0);
            }
            plan
        });
        Self { groups, scale }
    }

    fn group(&self, point: Point) -> Option<(Group, &GroupPlan)> {
        point.group().map(|g| (g, &self.groups[g as usize])).filter(|(_, g)| g.rank > 0)
    }
}

impl GroupPlan {
    fn stacked_a<'a>(&self, vector: &'a [f32]) -> View<'a> {
        View::new(&vector[self.a..self.a + self.rank * self.input], self.input)
    }
}

/// The input of the A factors after dropout, and the mask that made it.
fn dropped(at: &At<'_>, group: Group, x: View<'_>) -> Option<(Vec<f32>, Vec<f32>)> {
    let d = at.dropout.filter(|d| d.p > 0.0)?;
    let x = x.numbers();
    let mask = d.mask(at.layer, group, x.len());
    Some((x.iter().zip(&mask).map(|(x, m)| x * m).collect(), mask))
}

impl Act for Lora {
    fn acts(&self, point: Point) -> bool {
        self.group(point).is_some()
    }

    /// Keeps `A x [n, rank]`.
    fn forward(&self, at: &At<'_>, x: View<'_>, y: &mut [f32]) -> Vec<f32> {
        let Some((group, g)) = self.group(at.point) else { return Vec::new() };
        let dropped = dropped(at, group, x);
        let x = dropped.as_ref().map_or(x, |(d, _)| View::new(d, g.input));
        let low = matmul(x, g.stacked_a(at.vector).t(), at.threads);
        for f in &g.factors {
            let part = View::new(&low, g.rank).columns(f.low.clone());
            let b = View::new(&at.vector[f.b.clone()], f.low.len());
            matmul_add(y, g.output, f.out.clone(), part, b.t(), self.scale, at.threads);
        }
        low
    }

    fn backward(
        &self,
        at: &At<'_>,
        x: View<'_>,
        low: &[f32],
        dy: &mut [f32],
        grad: &mut [f32],
        dx: Option<&mut [f32]>,
    ) {
        let Some((group, g)) = self.group(at.point) else { return };
        let (s, t) = (self.scale, at.threads);
        let dy = View::new(dy, g.output);
        let mut d_low = vec![0.0; x.height() * g.rank];
        for f in &g.factors {
            let (dy, b) = (dy.columns(f.out.clone()), View::new(&at.vector[f.b.clone()], f.low.len()));
            matmul_add(&mut d_low, g.rank, f.low.clone(), dy, b, s, t);
            let low = View::new(low, g.rank).columns(f.low.clone());
            matmul_add(&mut grad[f.b.clone()], f.low.len(), 0..f.low.len(), dy.t(), low, s, t);
        }
        let d_low = View::new(&d_low, g.rank);
        let dropped = dropped(at, group, x);
        let x = dropped.as_ref().map_or(x, |(d, _)| View::new(d, g.input));
        matmul_add(&mut grad[g.a..g.a + g.rank * g.input], g.input, 0..g.input, d_low.t(), x, 1.0, t);
        let a = g.stacked_a(at.vector);
        match (dx, dropped) {
            (None, _) => {}
            (Some(dx), None) => matmul_add(dx, g.input, 0..g.input, d_low, a, 1.0, t),
            (Some(dx), Some((_, mask))) => {
                let part = matmul(d_low, a, t);
                dx.iter_mut().zip(part.iter().zip(&mask)).for_each(|(d, (p, m))| *d += p * m);
            }
        }
    }
}
