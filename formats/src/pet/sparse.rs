//! APET (Su et al. 2023, arXiv 2306.02320): any number of trainable weights at arbitrary positions,
//! `y = (W + S)x` with a sparse `S`.
//!
//! The spec names how many positions there are in all and the rule that chose them; where they are
//! is data. At a linear `[out, in]` with k of them a module holds `<site>.sparse_index` `[k]` (I32,
//! `row · in + column`, ascending) and `<site>.sparse` `[k]`; a site without any holds neither.

use super::kind::{Held, Kind};
use super::options::Options;
use super::point::Point;
use super::site::{Place, Places};
use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};

/// What follows a site's name in the names of the positions and of the values there.
pub const NAMES: [&str; 2] = ["sparse_index", "sparse"];

/// How positions are chosen, among all weights of the sites together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rule {
    /// Each equally likely.
    Random,
    /// The largest |W|.
    Magnitude,
    /// The largest mean squared gradient on the task's rows (Sung et al. 2021, arXiv 2111.09839).
    Fisher,
}

impl Rule {
    /// All rules.
    pub const ALL: [Self; 3] = [Self::Random, Self::Magnitude, Self::Fisher];

    /// As specs spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Magnitude => "magnitude",
            Self::Fisher => "fisher",
        }
    }
}

/// A sparse delta's hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sparse {
    /// Positions of all sites together, 1..=2^30.
    pub n: usize,
    /// What chose them.
    pub rule: Rule,
}

impl Default for Sparse {
    fn default() -> Self {
        Self { n: 10_000, rule: Rule::Random }
    }
}

impl Kind for Sparse {
    fn about(&self) -> &'static str {
        "Any number of weights anywhere, Su et al. 2023 (APET)."
    }

    fn syntax(&self) -> &'static str {
        "n=,rule=random|magnitude|fisher"
    }

    fn read(&mut self, options: &mut Options<'_>) -> Result<()> {
        options.number("n", &mut self.n)?;
        options.choice("rule", &Rule::ALL, Rule::name, &mut self.rule)
    }

    fn options(&self) -> Vec<String> {
        vec![format!("n={}", self.n), format!("rule={}", self.rule.name())]
    }

    fn check(&self) -> Result<()> {
        if self.n == 0 || self.n > 1 << 30 {
            return Err(Error::new(Code::Value, format!("a sparse delta of {} positions is not in 1..=2^30", self.n)));
        }
        Ok(())
    }

    fn default_places(&self) -> Places {
        Places::LINEARS
    }

    fn acts_at(&self, point: Point) -> Option<Place> {
        point.linear()
    }

    /// None: how many positions lie at a site depends on what was chosen.
    fn tensors(&self, _spec: &ModelSpec, _place: Place) -> Vec<(&'static str, Vec<usize>)> {
        Vec::new()
    }

    fn parameters(&self) -> Option<usize> {
        Some(self.n)
    }

    fn resize(&mut self, n: usize) -> bool {
        self.n = n;
        true
    }

    fn products(&self) -> &'static [&'static str] {
        &[NAMES[1]]
    }

    fn apply_reference(&self, held: &Held<'_>, x: &[f32], y: &mut [f32]) {
        if let Some(([values], index)) = held.get([NAMES[1]]).zip(held.integers.get(NAMES[0])) {
            apply_reference(index, values, x, y);
        }
    }
}

/// Checks positions in a weight `[out, in]`: ascending, none twice, none outside.
///
/// # Errors
/// Names the first that is wrong.
pub fn check_index(index: impl Iterator<Item = i32>, out: usize, input: usize) -> Result<()> {
    let mut next = 0i64;
    for (i, at) in index.enumerate() {
        let at = i64::from(at);
        if at < next || at >= (out * input) as i64 {
            return Err(Error::new(
                Code::Value,
                format!("position {at} (number {i}) is not ascending within [{out}, {input}]"),
            ));
        }
        next = at + 1;
    }
    Ok(())
}

/// Scalar reference: `y[row] += value · x[column]` for each position, accumulated in `f64`.
///
/// # Panics
/// If the lengths differ or a position lies outside.
pub fn apply_reference(index: &[i32], values: &[f32], x: &[f32], y: &mut [f32]) {
    assert_eq!(index.len(), values.len());
    let mut sum: Vec<f64> = y.iter().map(|v| f64::from(*v)).collect();
    for (at, v) in index.iter().zip(values) {
        let at = *at as usize;
        sum[at / x.len()] += f64::from(*v) * f64::from(x[at % x.len()]);
    }
    y.iter_mut().zip(sum).for_each(|(y, s)| *y = s as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_matches_a_hand_computed_case() {
        // S = [[0, 2, 0], [0, 0, 3]] on x = [5, 6, 7].
        let mut y = [1.0, 1.0];
        apply_reference(&[1, 5], &[2.0, 3.0], &[5.0, 6.0, 7.0], &mut y);
        assert_eq!(y, [13.0, 22.0]);
    }

    #[test]
    fn positions_ascend_within_the_weight() {
        assert!(check_index([0, 1, 5].into_iter(), 2, 3).is_ok());
        for bad in [[0, 0, 1], [2, 1, 3], [0, 1, 6], [-1, 0, 1]] {
            assert!(check_index(bad.into_iter(), 2, 3).is_err(), "{bad:?}");
        }
    }
}
