//! How unlike a task an input is: the quantity by which a selector refuses inputs ([`crate::refusal`] has the limits).
//!
//! For shared-covariance Gaussians it is an angle: with `Σ` within classes and the mean `μ` of all rows, one minus
//! the largest cosine, in the space whitened by `Σ`, between the input and a class of the task,
//! `cos_c = (x - μ)ᵀ Σ⁻¹ (μ_c - μ) / (|x - μ|_Σ |μ_c - μ|_Σ)`. The numerator is the class's score and a constant,
//! `score_c + ½ |μ_c - μ|²_Σ`; the length of `x` takes the inverse of `Σ`'s Cholesky factor, `|L⁻¹ (x - μ)|`. An
//! angle is better here than a distance: strangers are often short, lying near the mean of all rows, and so not far
//! from anything (measured in docs/results/few-rows.md). Other selectors have no such space; their novelty is minus
//! the task's best score (Hendrycks et al. 2022, "max logit").
//!
//! Payload, beside a selector's weights: [`SHIFT`] F32 `[classes]`, `½ |μ_c - μ|²_Σ`; [`MEAN`] F32 `[dim]`; and
//! [`ROOT`] F16, `L⁻¹` in panels of [`PANEL`] rows, one after another, each row of a panel as long as the panel's
//! last ([`Root::panels`]): a lower triangle that a matrix product can read.
//!
//! Bundles of earlier versions have another form, the relative Mahalanobis distance (Ren et al. 2021) to all classes
//! together, and one limit: [`LIMIT`] F32 `[1]`; [`SHIFT`] and [`FORM`] F32 `[classes (classes + 1) / 2]`, both or
//! neither. They are read as ever.

use crate::mmap::Mapped;
use crate::tensors::{Dtype, Tensors, TensorsWriter};
use crate::{Code, Error, Result};
use std::ops::Range;

/// Name of the largest novelty that is still answered, in earlier bundles.
pub const LIMIT: &str = "novelty.limit";
/// Name of the values that are added to the scores.
pub const SHIFT: &str = "novelty.shift";
/// Name of the form of earlier bundles.
pub const FORM: &str = "novelty.form";
/// Name of the mean of all rows.
pub const MEAN: &str = "novelty.mean";
/// Name of the inverse of the covariance's Cholesky factor.
pub const ROOT: &str = "novelty.root";
/// Rows of a panel.
pub const PANEL: usize = 64;

/// The space in which angles are measured, read where it lies.
#[derive(Debug, Clone)]
pub struct Root {
    map: Mapped,
    root: Range<usize>,
    /// The mean of all rows `[dim]`.
    pub mean: Vec<f32>,
    /// `½ |μ_c - μ|²_Σ` of each class.
    pub shift: Vec<f32>,
}

impl Root {
    /// Finds it in the payload at `range` of `map`; `None` if there is none.
    ///
    /// # Errors
    /// If tensors are missing or do not fit.
    pub fn load(map: &Mapped, range: Range<usize>, classes: usize, dim: usize) -> Result<Option<Self>> {
        let base = map.as_ptr() as usize;
        let t = Tensors::parse(&map[range])?;
        let Some(root) = t.get(ROOT) else { return Ok(None) };
        let get = |name: &str| {
            t.get(name)
                .map(|t| t.to_f32())
                .ok_or_else(|| Error::new(Code::Missing, format!("{ROOT:?} and {name:?} go together, one is missing")))
        };
        let (mean, shift) = (get(MEAN)?, get(SHIFT)?);
        if root.dtype != Dtype::F16 {
            return Err(Error::new(Code::Type, format!("tensor {ROOT:?} is of dtype {:?}", root.dtype)));
        }
        if root.shape != [values(dim)] || mean.len() != dim || shift.len() != classes {
            return Err(Error::new(
                Code::Shape,
                format!(
                    "a root {:?}, a mean of {} and {} shifts do not fit {classes} classes of features of {dim}",
                    root.shape,
                    mean.len(),
                    shift.len()
                ),
            ));
        }
        if shift.iter().any(|s| !(*s >= 0.0)) {
            return Err(Error::new(Code::Value, format!("tensor {SHIFT:?} has a length below 0")));
        }
        let at = root.data.as_ptr() as usize - base;
        Ok(Some(Self { root: at..at + root.data.len(), map: map.clone(), mean, shift }))
    }

    /// The parts of `L⁻¹`: the rows of each, the length of its rows, and its values, F16 `[rows, length]`.
    pub fn panels(&self) -> impl Iterator<Item = (Range<usize>, usize, &[u8])> {
        let mut at = self.root.start;
        panels(self.mean.len()).map(move |(rows, width)| {
            let bytes = 2 * rows.len() * width;
            at += bytes;
            (rows, width, &self.map[at - bytes..at])
        })
    }

    /// The novelty of an input to each task: `states` are the classes' scores from its feature, `length` is
    /// `|L⁻¹ (x - μ)|`, `class_task` the task of each class.
    ///
    /// # Panics
    /// If lengths do not fit, or a class belongs to no task below `n_tasks`.
    pub fn novelties(&self, states: &[f32], length: f32, class_task: &[usize], n_tasks: usize) -> Vec<f32> {
        let mut out = vec![2.0f32; n_tasks];
        for ((state, shift), t) in states.iter().zip(&self.shift).zip(class_task) {
            let cosine = (state + shift) / (length * (2.0 * shift).sqrt()).max(f32::MIN_POSITIVE);
            // Rounding may lead a little beyond what a cosine can be, a damaged payload far.
            out[*t] = out[*t].min(1.0 - cosine.clamp(-1.0, 1.0));
        }
        out
    }
}

/// Adds the tensors to a payload: `root` is `L⁻¹`, a lower triangle by rows.
///
/// # Errors
/// If a tensor cannot be written.
///
/// # Panics
/// If the root does not fit the mean.
pub fn write(w: &mut TensorsWriter<'_>, root: &[f64], mean: &[f32], shift: &[f32]) -> Result<()> {
    let dim = mean.len();
    assert_eq!(root.len(), dim * (dim + 1) / 2);
    let mut out = Vec::with_capacity(values(dim));
    for (rows, width) in panels(dim) {
        for i in rows {
            let start = i * (i + 1) / 2;
            out.extend((0..width).map(|j| if j <= i { root[start + j] as f32 } else { 0.0 }));
        }
    }
    w.add_f16(ROOT, &[out.len()], &out)?;
    w.add_f32(MEAN, &[dim], mean)?;
    w.add_f32(SHIFT, &[shift.len()], shift)
}

/// The rows of each panel of a triangle of `dim` rows, and their length.
fn panels(dim: usize) -> impl Iterator<Item = (Range<usize>, usize)> {
    (0..dim).step_by(PANEL).map(move |from| (from..(from + PANEL).min(dim), (from + PANEL).min(dim)))
}

/// Number of values in all panels.
fn values(dim: usize) -> usize {
    panels(dim).map(|(rows, width)| rows.len() * width).sum()
}

/// The form and the limit of earlier bundles, or a limit alone.
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
    fn a_root_round_trips_and_measures_angles() {
        // Σ = diag(4, 1, ..): L⁻¹ = diag(½, 1, ..); 70 dimensions are two panels.
        let dim = 70;
        let root: Vec<f64> = (0..dim)
            .flat_map(|i| (0..=i).map(move |j| if i == j { [0.5, 1.0][usize::from(i > 0)] } else { 0.0 }))
            .collect();
        let load = |root: &[f64], shift: &[f32], classes: usize, dim: usize| {
            let mut w = TensorsWriter::new();
            write(&mut w, root, &vec![1.0; 70], shift).unwrap();
            let map = Mapped::from_vec(w.finish().unwrap());
            let all = 0..map.len();
            Root::load(&map, all, classes, dim)
        };
        // Classes at (2, 0, ..) and (0, 3, ..) from the mean: lengths 1 and 3 in the whitened space.
        let r = load(&root, &[0.5, 4.5], 2, dim).unwrap().unwrap();
        let panels: Vec<_> = r.panels().map(|(rows, width, bytes)| (rows, width, bytes.len())).collect();
        assert_eq!(panels, [(0..64, 64, 2 * 64 * 64), (64..70, 70, 2 * 6 * 70)]);
        // An input at (4, 0, ..): (2, 0, ..) when whitened. Score of a class: dot - ½ length².
        let got = r.novelties(&[2.0 - 0.5, 0.0 - 4.5], 2.0, &[0, 1], 2);
        assert_eq!(got, [0.0, 1.0]);
        assert_eq!(r.novelties(&[1.5, -4.5], 2.0, &[1, 1], 3), [2.0, 0.0, 2.0], "a task without classes is far");
        assert!(load(&root, &[0.5, 4.5], 3, dim).is_err() && load(&root, &[0.5, 4.5], 2, 71).is_err());
        assert_eq!(load(&root, &[0.5, -1.0], 2, dim).unwrap_err().code(), Code::Value);
    }

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
