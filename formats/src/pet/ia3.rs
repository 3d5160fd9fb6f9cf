//! (IA)³ (Liu et al. 2022, arXiv 2205.05638): `y = l ⊙ Wx`, and `y = W(l ⊙ x)` at `ffn_down`.
//!
//! At a linear, a module holds `l - 1` in `<site>.ia3`, `[out]`, or `[in]` at `ffn_down`. The
//! difference from one is what is stored and trained: it starts at zero as every kind does, weight
//! decay pulls it to the untouched base, and half precision is finest where it lies.

use super::kind::{Held, Kind};
use super::point::Point;
use super::site::{Place, Places};
use crate::model_spec::ModelSpec;

/// What follows a site's name in the name of `l - 1`.
pub const L: &str = "ia3";

/// (IA)³, which has no hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ia3;

impl Kind for Ia3 {
    fn about(&self) -> &'static str {
        "Learned scales, Liu et al. 2022."
    }

    fn default_places(&self) -> Places {
        Places::of(&[Place::K, Place::V, Place::Down])
    }

    fn possible_places(&self) -> Places {
        Places::LINEARS
    }

    fn acts_at(&self, point: Point) -> Option<Place> {
        match point {
            Point::In(place) if scales_input(place) => Some(place),
            _ => point.linear().filter(|place| !scales_input(*place)),
        }
    }

    fn tensors(&self, spec: &ModelSpec, place: Place) -> Vec<(&'static str, Vec<usize>)> {
        let (out, input) = place.shape(spec);
        vec![(L, vec![if scales_input(place) { input } else { out }])]
    }

    fn products(&self) -> &'static [&'static str] {
        &[L]
    }

    fn apply_reference(&self, held: &Held<'_>, _x: &[f32], y: &mut [f32]) {
        if let Some([l]) = held.get([L]) {
            apply_reference(l, y);
        }
    }
}

/// Whether `l` scales what the linear reads rather than what it gives.
pub fn scales_input(place: Place) -> bool {
    place == Place::Down
}

/// Scalar reference: `v[i] *= 1 + l[i]`, where `l` is the difference from one.
///
/// # Panics
/// If the lengths differ.
pub fn apply_reference(l: &[f32], v: &mut [f32]) {
    assert_eq!(l.len(), v.len());
    v.iter_mut().zip(l).for_each(|(v, l)| *v = (f64::from(*v) * (1.0 + f64::from(*l))) as f32);
}
