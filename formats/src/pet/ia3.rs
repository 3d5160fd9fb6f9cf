//! (IA)³ (Liu et al. 2022, arXiv 2205.05638): `y = l ⊙ Wx`, and `y = W(l ⊙ x)` at `ffn_down`.
//!
//! At a linear, a module holds `l - 1` in `<site>.ia3`, `[out]`, or `[in]` at `ffn_down`. The
//! difference from one is what is stored and trained: it starts at zero as every kind does, weight
//! decay pulls it to the untouched base, and half precision is finest where it lies.

use super::site::Place;

/// What follows a site's name in the name of `l - 1`.
pub const L: &str = "ia3";

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
