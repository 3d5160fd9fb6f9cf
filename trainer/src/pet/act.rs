//! A part of a module: how it changes a layer's activations, and the gradient of that.

use super::dropout::Dropout;
use super::point::Point;
use crate::nn::matmul::View;
use conpet_runtime::kernels::Kernels;
use std::fmt::Debug;

/// The context in which a part acts.
#[derive(Debug, Clone, Copy)]
pub struct At<'a> {
    /// The layer's vector of parameters.
    pub vector: &'a [f32],
    /// Index of the layer.
    pub layer: usize,
    /// The point.
    pub point: Point,
    /// Dropout of a LoRA's inputs, if any.
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

    /// Changes `y [n, ..]`, the output of a step that read `x`; returns what the backward pass needs.
    fn forward(&self, at: &At<'_>, x: View<'_>, y: &mut [f32]) -> Vec<f32>;

    /// Given what `forward` returned and the gradient `dy` of the changed `y`: turns `dy` into the gradient of
    /// `y` as it was, adds to the vector's gradient, and to `dx` if it is wanted.
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
