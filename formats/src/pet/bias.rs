//! BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): `y = Wx + b`.
//!
//! At a linear or a norm whose output is `y [out]`, a module holds `b [out]` in `<site>.bias`. Bases
//! of the llama family have no biases of their own, so `b` starts at zero and is all there is.

use super::kind::{Held, Kind};
use super::point::Point;
use super::site::{Place, Places};
use crate::model_spec::ModelSpec;

/// What follows a site's name in the name of `b [out]`.
pub const B: &str = "bias";

/// BitFit, which has no hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bias;

impl Kind for Bias {
    fn about(&self) -> &'static str {
        "Learned biases, Ben Zaken et al. 2022."
    }

    fn default_places(&self) -> Places {
        Places::LAYER
    }

    fn acts_at(&self, point: Point) -> Option<Place> {
        match point {
            Point::Out(place) => Some(place),
            _ => None,
        }
    }

    fn tensors(&self, spec: &ModelSpec, place: Place) -> Vec<(&'static str, Vec<usize>)> {
        vec![(B, vec![place.shape(spec).0])]
    }

    fn products(&self) -> &'static [&'static str] {
        &[B]
    }

    fn apply_reference(&self, held: &Held<'_>, _x: &[f32], y: &mut [f32]) {
        if let Some([b]) = held.get([B]) {
            apply_reference(b, y);
        }
    }
}

/// Scalar reference: `y[o] += b[o]`.
///
/// # Panics
/// If the lengths differ.
pub fn apply_reference(b: &[f32], y: &mut [f32]) {
    assert_eq!(b.len(), y.len());
    y.iter_mut().zip(b).for_each(|(y, b)| *y = (f64::from(*y) + f64::from(*b)) as f32);
}
