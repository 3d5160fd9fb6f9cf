//! BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): `y = Wx + b`.
//!
//! At a linear or a norm whose output is `y [out]`, a module holds `b [out]` in `<site>.bias`. Bases
//! of the llama family have no biases of their own, so `b` starts at zero and is all there is.

/// What follows a site's name in the name of `b [out]`.
pub const B: &str = "bias";

/// Scalar reference: `y[o] += b[o]`.
///
/// # Panics
/// If the lengths differ.
pub fn apply_reference(b: &[f32], y: &mut [f32]) {
    assert_eq!(b.len(), y.len());
    y.iter_mut().zip(b).for_each(|(y, b)| *y = (f64::from(*y) + f64::from(*b)) as f32);
}
