//! The parts that act in a layer in training, and where their parameters lie.
//!
//! A layer's parameters form one flat vector, so that a layer is one operator with one gradient.

use super::act::{Act, At};
use super::point::{Point, Spot};
use crate::nn::matmul::View;
use candle_core::{Result, Tensor};
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Kind, Place, Site};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// The tensors of a layer, appended to its vector in the order in which they are taken.
#[derive(Debug)]
pub struct Layout<'a> {
    /// The base.
    pub spec: &'a ModelSpec,
    layer: usize,
    tensors: &'a BTreeMap<String, Tensor>,
    indices: &'a BTreeMap<String, Arc<Vec<i32>>>,
    taken: Vec<Tensor>,
    len: usize,
}

impl<'a> Layout<'a> {
    /// The layout of a layer; tensors and indices are by full name.
    pub fn new(
        spec: &'a ModelSpec,
        layer: usize,
        tensors: &'a BTreeMap<String, Tensor>,
        indices: &'a BTreeMap<String, Arc<Vec<i32>>>,
    ) -> Self {
        Self { spec, layer, tensors, indices, taken: Vec::new(), len: 0 }
    }

    /// Length of the vector so far.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    fn name(&self, place: Place, name: &str) -> String {
        format!("{}.{name}", Site { layer: self.layer, place })
    }

    /// Appends a tensor of this layer; returns its range and shape, or `None` if there is none of that name.
    pub fn take(&mut self, place: Place, name: &str) -> Option<(Range<usize>, Vec<usize>)> {
        let t = self.tensors.get(&self.name(place, name))?;
        self.taken.push(t.clone());
        self.len += t.elem_count();
        Some((self.len - t.elem_count()..self.len, t.dims().to_vec()))
    }

    /// A vector of integers of this layer.
    pub fn integers(&self, place: Place, name: &str) -> Option<Arc<Vec<i32>>> {
        self.indices.get(&self.name(place, name)).cloned()
    }

    /// The places where a kind may act, norms and then linears, with their spots in the layer.
    pub fn spots(&self, kind: &dyn Kind) -> Vec<(Place, Spot)> {
        let (linears, norms) = Place::ALL[..9].split_at(7);
        let spot = |p: &Place| Some((*p, Spot::of(self.spec, kind.point(*p)?)?));
        norms.iter().chain(linears).filter_map(spot).collect()
    }
}

/// The parts that act in a layer.
#[derive(Debug, Default)]
pub struct Plan {
    parts: Vec<Box<dyn Act>>,
    /// Ranges of learned keys and values, `[n, kv_dim]` each.
    pub learned: Option<[Range<usize>; 2]>,
    /// Length of the vector.
    pub len: usize,
}

impl Plan {
    /// Adds a part, which acts after those already added.
    pub(super) fn add(&mut self, part: impl Act + 'static) {
        self.parts.push(Box::new(part));
    }

    /// The plan and the vector of all tensors that were taken; `None` if none was.
    ///
    /// # Errors
    /// If the tensors cannot be joined.
    pub(super) fn finish(mut self, layout: Layout<'_>) -> Result<Option<(Self, Tensor)>> {
        self.len = layout.len;
        if self.len == 0 {
            return Ok(None);
        }
        let parts = layout.taken.iter().map(Tensor::flatten_all).collect::<Result<Vec<_>>>()?;
        Ok(Some((self, Tensor::cat(&parts, 0)?)))
    }

    /// Whether any part acts at a point.
    pub fn acts(&self, point: Point) -> bool {
        self.parts.iter().any(|p| p.acts(point))
    }

    /// Whether anything is trained at or before a point.
    pub fn learns_until(&self, point: Point) -> bool {
        let mut until = Point::ALL.into_iter().take(point as usize + 1);
        until.any(|x| self.acts(x)) || self.learned.is_some() && point >= Point::Attention
    }

    /// Runs every part in turn; returns what each needs for the backward pass.
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

    /// Runs every part in reverse; see [`Act::backward`].
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
