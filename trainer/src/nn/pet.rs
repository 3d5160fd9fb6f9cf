//! What a module does to a layer in training: parts that change what flows past its points.
//!
//! A layer's factors are one flat vector, so that a layer is one operator with one gradient. A kind
//! is one file beside this and one line in [`Plan::new`]: where its tensors lie in the vector, what it
//! does at the points of a layer, and the gradient of that.

use super::adapter::Adapter;
use super::bias::Bias;
use super::ia3::Ia3;
use super::lora::Lora;
use super::matmul::View;
use super::sparse::{Probe, Sparse};
use crate::rng::Stream;
use candle_core::{Result, Tensor};
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Pet, PetSpec, Place, Site, prefix};
use conpet_runtime::kernels::Kernels;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

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

    /// Its linears, as indices into [`ModelSpec::linears`] and [`Place::ALL`].
    pub const fn linears(self) -> Range<usize> {
        match self {
            Self::Qkv => 0..3,
            Self::Output => 3..4,
            Self::GateUp => 4..6,
            Self::Down => 6..7,
        }
    }

    /// Its linears, each with its columns of the group's output.
    pub fn columns(self, spec: &ModelSpec) -> impl Iterator<Item = (Place, Range<usize>)> {
        let shapes = spec.linears();
        self.linears().scan(0, move |at, i| {
            *at += shapes[i].1;
            Some((Place::ALL[i], *at - shapes[i].1..*at))
        })
    }
}

/// A point of a layer (`decoder/layer.rs`), in forward order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// After the norm before attention.
    AttnNorm,
    /// After q, k and v.
    Qkv,
    /// In attention.
    Attention,
    /// After its output projection.
    Output,
    /// What attention is about to add; the input is what q, k and v read.
    AttnAdd,
    /// After the norm before the feed-forward layer.
    FfnNorm,
    /// After gate and up.
    GateUp,
    /// Between the feed-forward's halves.
    Hidden,
    /// After down.
    Down,
    /// What the feed-forward layer is about to add; the input is what gate and up read.
    FfnAdd,
    /// What leaves the layer.
    Layer,
}

impl Point {
    /// How many there are.
    pub const N: usize = Self::Layer as usize + 1;

    /// Right after these linears.
    pub const fn after(group: Group) -> Self {
        match group {
            Group::Qkv => Self::Qkv,
            Group::Output => Self::Output,
            Group::GateUp => Self::GateUp,
            Group::Down => Self::Down,
        }
    }

    /// The linears it comes right after.
    pub fn group(self) -> Option<Group> {
        Group::ALL.into_iter().find(|g| Self::after(*g) == self)
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
    pub(super) fn mask(&self, layer: usize, group: Group, n: usize) -> Vec<f32> {
        let mut s = Stream::new(self.seed, &format!("{}/dropout/{layer}.{}", self.name, group as usize), self.step);
        let keep = 1.0 / (1.0 - self.p);
        (0..n).map(|_| if s.uniform() < self.p { 0.0 } else { keep }).collect()
    }
}

/// Where and with what a part acts.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The layer's vector.
    pub vector: &'a [f32],
    /// Which layer.
    pub layer: usize,
    /// The point.
    pub point: Point,
    /// While training.
    pub dropout: Option<&'a Dropout>,
    /// Instruction set.
    pub kernels: Kernels,
    /// Threads that multiply.
    pub threads: usize,
}

/// A part of a module in one layer.
pub trait Act: Debug + Send + Sync {
    /// Whether it acts at a point.
    fn acts(&self, point: Point) -> bool;

    /// Changes `y [n, ..]`, where what is there has read `x`; gives what the backward pass needs.
    fn forward(&self, at: &At<'_>, x: View<'_>, y: &mut [f32]) -> Vec<f32>;

    /// Given what `forward` gave and the gradient of the changed `y`: makes `dy` the gradient of `y` as
    /// it was, adds to the vector's gradient, and to `dx` if it is wanted.
    fn backward(
        &self,
        at: &At<'_>,
        x: View<'_>,
        kept: &[f32],
        dy: &mut [f32],
        grad: &mut [f32],
        dx: Option<&mut [f32]>,
    );
}

/// The tensors of a layer, laid into its vector one after another as they are asked for.
pub struct Layout<'a> {
    layer: usize,
    tensors: &'a BTreeMap<String, Tensor>,
    parts: Vec<Tensor>,
    len: usize,
}

impl Layout<'_> {
    /// The site of this layer at a place.
    pub fn site(&self, place: Place) -> Site {
        Site { layer: self.layer, place }
    }

    /// Where the next tensor will lie.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Where a tensor of this layer lies, and its shape; `None` if there is none of that name.
    pub fn take(&mut self, place: Place, name: &str) -> Option<(Range<usize>, Vec<usize>)> {
        let t = self.tensors.get(&format!("{}.{name}", self.site(place)))?;
        self.parts.push(t.clone());
        self.len += t.elem_count();
        Some((self.len - t.elem_count()..self.len, t.dims().to_vec()))
    }
}

/// What acts in a layer, and where its numbers lie.
#[derive(Debug, Default)]
pub struct Plan {
    parts: Vec<Box<dyn Act>>,
    /// Learned keys and values `[n, kv_dim]`.
    pub learned: Option<[Range<usize>; 2]>,
    /// Length of the vector.
    pub len: usize,
}

impl Plan {
    /// A layer's plan and its vector; `None` where nothing acts. `indices` are a sparse delta's.
    ///
    /// # Errors
    /// If the tensors cannot be joined.
    pub fn new(
        spec: &ModelSpec,
        layer: usize,
        pet: &PetSpec,
        tensors: &BTreeMap<String, Tensor>,
        indices: &BTreeMap<String, Arc<Vec<i32>>>,
        probe: Option<&Arc<Probe>>,
    ) -> Result<Option<(Self, Tensor)>> {
        let mut at = Layout { layer, tensors, parts: Vec::new(), len: 0 };
        let mut plan = Self::default();
        for part in pet.parts() {
            match part.pet {
                Pet::Lora(x) => plan.add(Lora::new(spec, x.scale() as f32, &mut at)),
                Pet::Sparse(_) => plan.add(Sparse::new(spec, indices, &mut at)),
                Pet::Ia3 => plan.add(Ia3::new(spec, &mut at)),
                Pet::Bias => plan.add(Bias::new(spec, &mut at)),
                Pet::Adapter(x) => plan.add(Adapter::new(spec, x, &mut at)),
                Pet::Prefix(_) => {
                    let mut pairs = |place| at.take(place, prefix::PAIRS).map(|x| x.0);
                    plan.learned = pairs(Place::K).zip(pairs(Place::V)).map(|(k, v)| [k, v]);
                }
                // Rows before the input are no matter of a layer.
                Pet::Prompt(_) => {}
            }
        }
        if let Some(p) = probe {
            plan.add(p.layer(spec, &mut at));
        }
        plan.len = at.len;
        if plan.len == 0 {
            return Ok(None);
        }
        let parts = at.parts.iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
        Ok(Some((plan, Tensor::cat(&parts, 0)?)))
    }

    fn add(&mut self, part: impl Act + 'static) {
        self.parts.push(Box::new(part));
    }

    /// Whether any part acts at a point.
    pub fn acts(&self, point: Point) -> bool {
        self.parts.iter().any(|p| p.acts(point))
    }

    /// Whether anything learns at or before a point.
    pub fn learns_until(&self, point: Point) -> bool {
        let mut until = ALL_POINTS.into_iter().take(point as usize + 1);
        until.any(|x| self.acts(x)) || self.learned.is_some() && point >= Point::Attention
    }

    /// Every part in turn; what each needs for the backward pass.
    pub fn forward(&self, at: &At<'_>, x: View<'_>, y: &mut [f32]) -> Vec<Vec<f32>> {
        if !self.acts(at.point) {
            return Vec::new();
        }
        let mut kept = Vec::with_capacity(self.parts.len());
        for p in &self.parts {
            kept.push(if p.acts(at.point) { p.forward(at, x, y) } else { Vec::new() });
        }
        kept
    }

    /// Every part in reverse; see [`Act::backward`].
    pub fn backward(
        &self,
        at: &At<'_>,
        x: View<'_>,
        kept: &[Vec<f32>],
        dy: &mut [f32],
        grad: &mut [f32],
        mut dx: Option<&mut [f32]>,
    ) {
        for (p, kept) in self.parts.iter().zip(kept).rev().filter(|(p, _)| p.acts(at.point)) {
            p.backward(at, x, kept, dy, grad, dx.as_deref_mut());
        }
    }
}

const ALL_POINTS: [Point; Point::N] = [
    Point::AttnNorm,
    Point::Qkv,
    Point::Attention,
    Point::Output,
    Point::AttnAdd,
    Point::FfnNorm,
    Point::GateUp,
    Point::Hidden,
    Point::Down,
    Point::FfnAdd,
    Point::Layer,
];

/// `sum[i] += Σ_rows values[row, i]`.
pub(super) fn add_rows(values: &[f32], sum: &mut [f32]) {
    for row in values.chunks_exact(sum.len()) {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
}
