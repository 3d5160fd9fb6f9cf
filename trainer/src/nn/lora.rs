//! LoRA at the linears of a layer (Hu et al. 2021): `y += s · B(A x)`.
//!
//! A layer's factors are one flat vector, so that a layer is one operator with one gradient.
//! Linears that read the same input (q, k, v; gate, up) form a group: their A factors lie one
//! below the other and are one product. Order of the vector: for each group all A `[rank, in]`,
//! then all B `[out, rank]`.

use super::matmul::{View, matmul, matmul_add};
use crate::rng::Stream;
use conpet_formats::model_spec::ModelSpec;
use std::ops::Range;

/// Linears of a layer that read one input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Query, key and value.
    Qkv,
    /// The attention's output.
    Output,
    /// The two of the feed-forward's entry.
    GateUp,
    /// The feed-forward's exit.
    Down,
}

impl Group {
    /// All four, in forward order.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    /// Its linears, as indices into [`ModelSpec::linears`].
    pub const fn linears(self) -> Range<usize> {
        match self {
            Self::Qkv => 0..3,
            Self::Output => 3..4,
            Self::GateUp => 4..6,
            Self::Down => 6..7,
        }
    }
}

/// One linear's factors within a layer's vector.
#[derive(Debug, Clone)]
pub struct Factor {
    /// Index into [`ModelSpec::linears`].
    pub linear: usize,
    /// Its columns of the group's output.
    out: Range<usize>,
    /// Its columns of the group's `A x`.
    low: Range<usize>,
    /// Where A `[rank, in]` lies.
    pub a: Range<usize>,
    /// Where B `[out, rank]` lies.
    pub b: Range<usize>,
}

#[derive(Debug, Clone, Default)]
struct GroupPlan {
    input: usize,
    output: usize,
    /// Sum of the ranks.
    rank: usize,
    /// Where the stacked A begins.
    a: usize,
    factors: Vec<Factor>,
}

/// Where the factors of a layer lie in its vector.
#[derive(Debug, Clone)]
pub struct Plan {
    groups: [GroupPlan; 4],
    /// Length of the vector.
    pub len: usize,
    /// The factor `s`.
    pub scale: f32,
}

impl Plan {
    /// `ranks` in the order of [`ModelSpec::linears`]; 0 where the layer has no such site.
    pub fn new(spec: &ModelSpec, ranks: [usize; 7], scale: f32) -> Self {
        let shapes = spec.linears();
        let (mut at, mut groups) = (0, <[GroupPlan; 4]>::default());
        for (plan, group) in groups.iter_mut().zip(Group::ALL) {
            plan.a = at;
            for i in group.linears() {
                let (_, out, input) = shapes[i];
                plan.input = input;
                if ranks[i] > 0 {
                    plan.factors.push(Factor {
                        linear: i,
                        out: plan.output..plan.output + out,
                        low: plan.rank..plan.rank + ranks[i],
                        a: at..at + ranks[i] * input,
                        b: 0..0,
                    });
                    plan.rank += ranks[i];
                    at += ranks[i] * input;
                }
                plan.output += out;
            }
            for f in &mut plan.factors {
                f.b = at..at + f.out.len() * f.low.len();
                at = f.b.end;
            }
        }
        Self { groups, len: at, scale }
    }

    /// Every factor, in forward order; within a group by A, then by B, as they lie in the vector.
    pub fn factors(&self) -> impl Iterator<Item = &Factor> {
        self.groups.iter().flat_map(|g| &g.factors)
    }

    /// Factors of each group.
    pub fn groups(&self) -> impl Iterator<Item = &[Factor]> {
        self.groups.iter().map(|g| g.factors.as_slice())
    }
}

/// Dropout of the input of the LoRA path only, as PEFT does. Masks are drawn again in the
/// backward pass rather than kept.
#[derive(Debug, Clone)]
pub struct Dropout {
    /// Probability that an input number is dropped.
    pub p: f32,
    /// The stream's seed.
    pub seed: u64,
    /// The stream's name.
    pub name: String,
    /// The stream's step.
    pub step: u64,
}

impl Dropout {
    /// Zero where dropped, `1 / (1 - p)` elsewhere.
    fn mask(&self, layer: usize, group: Group, n: usize) -> Vec<f32> {
        let mut s = Stream::new(self.seed, &format!("{}/dropout/{layer}.{}", self.name, group as usize), self.step);
        let keep = 1.0 / (1.0 - self.p);
        (0..n).map(|_| if s.uniform() < self.p { 0.0 } else { keep }).collect()
    }
}

/// The factors in force at a layer.
#[derive(Debug, Clone, Copy)]
pub struct Lora<'a> {
    /// Where they lie.
    pub plan: &'a Plan,
    /// The layer's vector.
    pub vector: &'a [f32],
    /// Which layer.
    pub layer: usize,
    /// While training.
    pub dropout: Option<&'a Dropout>,
    /// Threads that multiply.
    pub threads: usize,
}

impl Lora<'_> {
    /// What the A factors read instead of `x`, and the mask that made it.
    fn dropped(&self, group: Group, x: View<'_>) -> Option<(Vec<f32>, Vec<f32>)> {
        let d = self.dropout.filter(|d| d.p > 0.0)?;
        let x = x.numbers();
        let mask = d.mask(self.layer, group, x.len());
        Some((x.iter().zip(&mask).map(|(x, m)| x * m).collect(), mask))
    }

    fn stacked_a(&self, g: &GroupPlan) -> View<'_> {
        View::new(&self.vector[g.a..g.a + g.rank * g.input], g.input)
    }

    /// Adds the group's `s · B(A x)` to `y [n, out]`; gives `A x [n, rank]` for the backward pass,
    /// empty if the layer has no site in this group.
    pub fn forward(&self, group: Group, x: View<'_>, y: &mut [f32]) -> Vec<f32> {
        let g = &self.plan.groups[group as usize];
        if g.rank == 0 {
            return Vec::new();
        }
        let dropped = self.dropped(group, x);
        let x = dropped.as_ref().map_or(x, |(d, _)| View::new(d, g.input));
        let low = matmul(x, self.stacked_a(g).t(), self.threads);
        for f in &g.factors {
            let part = View::new(&low, g.rank).columns(f.low.clone());
            let b = View::new(&self.vector[f.b.clone()], f.low.len());
            matmul_add(y, g.output, f.out.clone(), part, b.t(), self.plan.scale, self.threads);
        }
        low
    }

    /// Given `dy [n, out]`: writes the group's part of the vector's gradient, and adds to
    /// `dx [n, in]` if there is one.
    pub fn backward(
        &self,
        group: Group,
        x: View<'_>,
        low: &[f32],
        dy: View<'_>,
        grad: &mut [f32],
        dx: Option<&mut [f32]>,
    ) {
        let g = &self.plan.groups[group as usize];
        if g.rank == 0 {
            return;
        }
        let (s, t) = (self.plan.scale, self.threads);
        let mut d_low = vec![0.0; x.height() * g.rank];
        for f in &g.factors {
            let (dy, b) = (dy.columns(f.out.clone()), View::new(&self.vector[f.b.clone()], f.low.len()));
            matmul_add(&mut d_low, g.rank, f.low.clone(), dy, b, s, t);
            let low = View::new(low, g.rank).columns(f.low.clone());
            matmul_add(&mut grad[f.b.clone()], f.low.len(), 0..f.low.len(), dy.t(), low, s, t);
        }
        let d_low = View::new(&d_low, g.rank);
        let dropped = self.dropped(group, x);
        let x = dropped.as_ref().map_or(x, |(d, _)| View::new(d, g.input));
        matmul_add(&mut grad[g.a..g.a + g.rank * g.input], g.input, 0..g.input, d_low.t(), x, 1.0, t);
        match (dx, dropped) {
            (None, _) => {}
            (Some(dx), None) => matmul_add(dx, g.input, 0..g.input, d_low, self.stacked_a(g), 1.0, t),
            (Some(dx), Some((_, mask))) => {
                let part = matmul(d_low, self.stacked_a(g), t);
                dx.iter_mut().zip(part.iter().zip(&mask)).for_each(|(d, (p, m))| *d += p * m);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{spec, wave};
    use conpet_formats::pet::lora::apply_reference;

    /// Ranks that do and do not divide by four, and sites that are missing.
    const RANKS: [usize; 7] = [5, 0, 4, 2, 1, 9, 3];

    #[test]
    fn agrees_with_the_scalar_reference_of_the_kind() {
        let plan = Plan::new(&spec(), RANKS, 0.7);
        let vector = wave(plan.len, 1.0);
        let lora = Lora { plan: &plan, vector: &vector, layer: 0, dropout: None, threads: 1 };
        for group in Group::ALL {
            let g = &plan.groups[group as usize];
            let x = wave(3 * g.input, 2.0);
            let mut got = wave(3 * g.output, 3.0);
            let mut want = got.clone();
            let _ = lora.forward(group, View::new(&x, g.input), &mut got);
            for (x, y) in x.chunks(g.input).zip(want.chunks_mut(g.output)) {
                for f in &g.factors {
                    let (a, b) = (&vector[f.a.clone()], &vector[f.b.clone()]);
                    apply_reference(a, b, f.low.len(), 0.7, x, &mut y[f.out.clone()]);
                }
            }
            // Sums of some hundred products of size about 1 in f32.
            assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-4 * (1.0 + w.abs())), "{group:?}");
        }
    }

    #[test]
    fn dropout_drops_its_part_and_keeps_the_mean() {
        let d = Dropout { p: 0.3, seed: 1, name: "t".into(), step: 2 };
        let m = d.mask(3, Group::Down, 10_000);
        let dropped = m.iter().filter(|v| **v == 0.0).count();
        assert!((2_800..3_200).contains(&dropped), "{dropped} of 10,000 at p = 0.3");
        assert!((m.iter().sum::<f32>() / 10_000.0 - 1.0).abs() < 0.03);
        assert_eq!(m, d.mask(3, Group::Down, 10_000));
        assert_ne!(m, Dropout { step: 3, ..d }.mask(3, Group::Down, 10_000));
    }
}
