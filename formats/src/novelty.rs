//! How unlike all classes an input is: the quantity by which a selector refuses inputs.
//!
//! `novelty = log p(x | any class) - max_c log p(x | c)`, the log-likelihood ratio of all rows
//! together against the best single class. For shared-covariance Gaussians it is half the *relative
//! Mahalanobis distance* (Ren et al. 2021, arXiv 2106.09022): with `Σ` within classes, the mean `μ` and
//! priors `π` of the rows seen, the covariance of all rows is `Σ + Σ_c π_c (μ_c - μ)(μ_c - μ)ᵀ`, which
//! differs from `Σ` in as many directions as there are classes. By the Woodbury identity the part
//! quadratic in x is then a form in the classes' own scores, and no `[dim, dim]` matrix is needed:
//!
//! `log p(x | any) = ½ uᵀ F u + const`, `u_c = score_c + ½ (μ_c - μ)ᵀ Σ⁻¹ (μ_c - μ)`,
//! `F = D (I + D G D)⁻¹ D`, `D = diag(√π)`, `G_cd = (μ_c - μ)ᵀ Σ⁻¹ (μ_d - μ)`.
//!
//! Token n-grams add their own ratio ([`crate::ngrams`]). Selectors that are no Gaussians have no
//! form; their novelty is minus the best score (Hendrycks et al. 2022, "max logit").
//!
//! Payload, beside a selector's weights: [`LIMIT`] F32 `[1]`; [`SHIFT`] F32 `[classes]` and [`FORM`]
//! F32 `[classes (classes + 1) / 2]`, the lower triangle of `F` by rows, both or neither.

use crate::tensors::{Tensors, TensorsWriter};
use crate::{Code, Error, Result};

/// Name of the largest novelty that is still answered.
pub const LIMIT: &str = "novelty.limit";
/// Name of the values that are added to the scores before the form.
pub const SHIFT: &str = "novelty.shift";
/// Name of the form.
pub const FORM: &str = "novelty.form";
/// Most classes a form is kept for: 64 MiB of them.
pub const MOST: usize = 5792;

/// The form and the limit.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Novelty {
    shift: Vec<f32>,
    form: Vec<f32>,
    limit: f32,
}

impl Novelty {
    /// A form on scores with their shifts; both may be empty.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn new(shift: Vec<f32>, form: Vec<f32>, limit: f32) -> Self {
        assert_eq!(form.len(), shift.len() * (shift.len() + 1) / 2);
        Self { shift, form, limit }
    }

    /// Finds it in a selector's payload of `classes` classes; `None` if there is none.
    ///
    /// # Errors
    /// If tensors are missing or do not fit.
    pub fn load(payload: &[u8], classes: usize) -> Result<Option<Self>> {
        let tensors = Tensors::parse(payload)?;
        let Some(limit) = tensors.get(LIMIT) else { return Ok(None) };
        let get = |name: &str| tensors.get(name).map(|t| t.to_f32());
        let (limit, shift, form) = (limit.to_f32(), get(SHIFT), get(FORM));
        if shift.is_some() != form.is_some() {
            return Err(Error::new(Code::Missing, format!("{SHIFT:?} and {FORM:?} go together, one is missing")));
        }
        let (shift, form) = (shift.unwrap_or_default(), form.unwrap_or_default());
        let fits = shift.is_empty() || shift.len() == classes && form.len() == classes * (classes + 1) / 2;
        if limit.len() != 1 || !fits {
            return Err(Error::new(
                Code::Shape,
                format!(
                    "a novelty of {} limits, {} shifts and a form of {} values for {classes} classes",
                    limit.len(),
                    shift.len(),
                    form.len()
                ),
            ));
        }
        Ok(Some(Self { shift, form, limit: limit[0] }))
    }

    /// Adds it to a payload.
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn write(&self, w: &mut TensorsWriter<'_>) -> Result<()> {
        w.add_f32(LIMIT, &[1], &[self.limit])?;
        if self.shift.is_empty() {
            return Ok(());
        }
        w.add_f32(SHIFT, &[self.shift.len()], &self.shift)?;
        w.add_f32(FORM, &[self.form.len()], &self.form)
    }

    /// The largest novelty that is still answered.
    pub fn limit(&self) -> f32 {
        self.limit
    }

    /// The novelty of an input: `states` are the classes' scores from its feature, `scores` those with
    /// the n-grams' joined in, `background` what the n-grams give to all classes together.
    ///
    /// # Panics
    /// If there is a form, and fewer states than it has rows.
    pub fn of(&self, states: &[f32], scores: &[f32], background: f32) -> f32 {
        let u: Vec<f64> = states.iter().zip(&self.shift).map(|(s, h)| f64::from(s + h)).collect();
        let (mut any, mut at) = (0.0, 0);
        for (i, x) in u.iter().enumerate() {
            // Half of the diagonal, and what lies below it once for both halves.
            let below: f64 = self.form[at..at + i].iter().zip(&u).map(|(f, y)| f64::from(*f) * y).sum();
            any += x * (below + 0.5 * f64::from(self.form[at + i]) * x);
            at += i + 1;
        }
        let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        any as f32 + background - best
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_half_a_quadratic_form() {
        let n = Novelty::new(vec![1.0, 0.0], vec![2.0, 3.0, 5.0], 0.5);
        // u = (2, 4): ½ (2·4 + 2·3·8 + 5·16) = 68.
        assert_eq!(n.of(&[1.0, 4.0], &[7.0, 6.0], 2.0), 68.0 + 2.0 - 7.0);
        assert_eq!(Novelty::default().of(&[1.0, 4.0], &[1.0, 4.0], 0.0), -4.0);
        let mut w = TensorsWriter::new();
        n.write(&mut w).unwrap();
        let payload = w.finish().unwrap();
        assert_eq!(Novelty::load(&payload, 2).unwrap(), Some(n));
        assert_eq!(Novelty::load(&payload, 3).unwrap_err().code(), Code::Shape);
        assert_eq!(Novelty::load(&TensorsWriter::new().finish().unwrap(), 3).unwrap(), None);
        let mut w = TensorsWriter::new();
        w.add_f32(LIMIT, &[1], &[0.0]).unwrap();
        w.add_f32(FORM, &[3], &[0.0; 3]).unwrap();
        assert_eq!(Novelty::load(&w.finish().unwrap(), 2).unwrap_err().code(), Code::Missing);
    }
}
