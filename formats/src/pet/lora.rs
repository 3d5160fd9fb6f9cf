//! LoRA (Hu et al. 2021, arXiv 2106.09685): `y = Wx + s·B(Ax)`.
//!
//! At a site whose frozen weight is `W [out, in]`, a module holds `A [r, in]` in tensor
//! `<site>.lora_a` and `B [out, r]` in `<site>.lora_b`. Never merged into `W`.

use super::kind::{Held, Kind};
use super::options::Options;
use super::point::Point;
use super::site::{Place, Places};
use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};
use serde::{Deserialize, Serialize};

/// How the numeric scale follows from alpha and rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Scaling {
    /// `alpha / r`, as published.
    #[serde(rename = "alpha/r")]
    AlphaOverRank,
    /// `alpha / sqrt(r)`, rank-stabilised (Kalajdzievski 2023).
    #[serde(rename = "alpha/sqrt(r)")]
    RankStabilised,
}

impl Scaling {
    /// Both.
    pub const ALL: [Self; 2] = [Self::AlphaOverRank, Self::RankStabilised];

    /// As specs spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AlphaOverRank => "alpha/r",
            Self::RankStabilised => "alpha/sqrt(r)",
        }
    }
}

/// Hyper-parameters of a LoRA module.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lora {
    /// Rank r, 1..=4096.
    pub rank: usize,
    /// Alpha; with [`Scaling`] it gives the scale.
    pub alpha: f64,
    /// The rule for the scale.
    pub scaling: Scaling,
}

impl Lora {
    /// The factor `s`.
    pub fn scale(&self) -> f64 {
        match self.scaling {
            Scaling::AlphaOverRank => self.alpha / self.rank as f64,
            Scaling::RankStabilised => self.alpha / (self.rank as f64).sqrt(),
        }
    }

    /// The same with another rank, at the same scale.
    #[must_use]
    pub fn of_rank(self, rank: usize) -> Self {
        let times = rank as f64 / self.rank as f64;
        let alpha = match self.scaling {
            Scaling::AlphaOverRank => self.alpha * times,
            Scaling::RankStabilised => self.alpha * times.sqrt(),
        };
        Self { rank, alpha, ..self }
    }
}

impl Default for Lora {
    fn default() -> Self {
        Self { rank: 8, alpha: 16.0, scaling: Scaling::AlphaOverRank }
    }
}

impl Kind for Lora {
    fn about(&self) -> &'static str {
        "Low-rank adaptation, Hu et al. 2021."
    }

    fn syntax(&self) -> &'static str {
        "r=,alpha=,scaling=alpha/r|alpha/sqrt(r)"
    }

    fn read(&mut self, options: &mut Options<'_>) -> Result<()> {
        options.number("r", &mut self.rank)?;
        options.number("alpha", &mut self.alpha)?;
        options.choice("scaling", &Scaling::ALL, Scaling::name, &mut self.scaling)
    }

    /// The scaling only where it is not as published.
    fn options(&self) -> Vec<String> {
        let scaling = (self.scaling != Scaling::AlphaOverRank).then(|| format!("scaling={}", self.scaling.name()));
        [format!("r={}", self.rank), format!("alpha={}", self.alpha)].into_iter().chain(scaling).collect()
    }

    /// Rank within bounds, alpha finite and positive.
    fn check(&self) -> Result<()> {
        if self.rank == 0 || self.rank > 4096 {
            return Err(Error::new(Code::Value, format!("LoRA rank {} is not in 1..=4096", self.rank)));
        }
        if !self.alpha.is_finite() || self.alpha <= 0.0 {
            return Err(Error::new(Code::Value, format!("LoRA alpha {} is not a positive number", self.alpha)));
        }
        Ok(())
    }

    fn default_places(&self) -> Places {
        Places::LINEARS
    }

    fn acts_at(&self, point: Point) -> Option<Place> {
        point.linear()
    }

    fn tensors(&self, spec: &ModelSpec, place: Place) -> Vec<(&'static str, Vec<usize>)> {
        let (out, input) = place.shape(spec);
        vec![(NAMES[0], vec![self.rank, input]), (NAMES[1], vec![out, self.rank])]
    }

    /// The rank, at the same scale.
    fn resize(&mut self, n: usize) -> bool {
        *self = self.of_rank(n);
        true
    }

    fn products(&self) -> &'static [&'static str] {
        &[NAMES[1]]
    }

    fn apply_reference(&self, held: &Held<'_>, x: &[f32], y: &mut [f32]) {
        if let Some([a, b]) = held.get(NAMES) {
            apply_reference(a, b, self.rank, self.scale(), x, y);
        }
    }
}

/// What follows a site's name in the names of A and B.
pub const NAMES: [&str; 2] = ["lora_a", "lora_b"];

/// Name of the A tensor of a site.
pub fn a_name(site: &str) -> String {
    format!("{site}.{}", NAMES[0])
}

/// Name of the B tensor of a site.
pub fn b_name(site: &str) -> String {
    format!("{site}.{}", NAMES[1])
}

/// The site that a tensor's name begins with, and whether it is the site's A (0) or B (1).
pub fn split_name(name: &str) -> Option<(&str, usize)> {
    NAMES.iter().enumerate().find_map(|(i, n)| Some((name.strip_suffix(n)?.strip_suffix('.')?, i)))
}

/// Scalar reference: `y[o] += s · Σ_k B[o,k] · Σ_i A[k,i] · x[i]`, accumulated in `f64`.
///
/// Shapes: `a [r, x.len()]`, `b [y.len(), r]`, row-major.
///
/// # Panics
/// If the shapes do not fit.
pub fn apply_reference(a: &[f32], b: &[f32], rank: usize, scale: f64, x: &[f32], y: &mut [f32]) {
    assert_eq!(a.len(), rank * x.len());
    assert_eq!(b.len(), rank * y.len());
    let ax: Vec<f64> = a
        .chunks_exact(x.len())
        .map(|row| row.iter().zip(x).map(|(w, v)| f64::from(*w) * f64::from(*v)).sum())
        .collect();
    for (o, row) in y.iter_mut().zip(b.chunks_exact(rank)) {
        let d: f64 = row.iter().zip(&ax).map(|(w, v)| f64::from(*w) * v).sum();
        *o = (f64::from(*o) + scale * d) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_matches_a_hand_computed_case() {
        // A = [[1,2]], B = [[3],[4]], x = [5,6] -> Ax = 17; y = [1,1] + 2*[51,68]
        let mut y = [1.0, 1.0];
        apply_reference(&[1.0, 2.0], &[3.0, 4.0], 1, 2.0, &[5.0, 6.0], &mut y);
        assert_eq!(y, [103.0, 137.0]);
    }

    #[test]
    fn scale_rules() {
        let l = Lora { rank: 16, alpha: 8.0, scaling: Scaling::AlphaOverRank };
        assert_eq!(l.scale(), 0.5);
        assert_eq!(Lora { scaling: Scaling::RankStabilised, ..l }.scale(), 2.0);
        for l in [l, Lora { scaling: Scaling::RankStabilised, ..l }] {
            assert_eq!((l.of_rank(64).scale(), l.of_rank(64).rank), (l.scale(), 64));
        }
        assert!(Lora { rank: 0, ..l }.check().is_err());
        assert!(Lora { alpha: f64::NAN, ..l }.check().is_err());
    }
}
