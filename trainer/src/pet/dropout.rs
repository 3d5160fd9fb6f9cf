//! Dropout of a LoRA's inputs, as in PEFT; no other kind has any.

use super::group::Group;
use crate::rng::Stream;

/// The dropout masks of a step, which the backward pass draws again instead of keeping them.
#[derive(Debug, Clone)]
pub struct Dropout {
    /// Probability that a value is dropped.
    pub p: f32,
    /// The stream's seed.
    pub seed: u64,
    /// The stream's name.
    pub name: String,
    /// The stream's step.
    pub step: u64,
}

impl Dropout {
    /// The mask for the `n` values that a group reads: zero where dropped, `1 / (1 - p)` elsewhere.
    pub(super) fn mask(&self, layer: usize, group: Group, n: usize) -> Vec<f32> {
        let mut s = Stream::new(self.seed, &format!("{}/dropout/{layer}.{}", self.name, group as usize), self.step);
        let keep = 1.0 / (1.0 - self.p);
        (0..n).map(|_| if s.uniform() < self.p { 0.0 } else { keep }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_drops_its_part_and_keeps_the_mean() {
        let d = Dropout { p: 0.3, seed: 1, name: "t".into(), step: 2 };
        let m = d.mask(3, Group::Down, 10_000);
        let dropped = m.iter().filter(|v| **v == 0.0).count();
        assert!((2_800..3_200).contains(&dropped), "{dropped} of 10,000 at p = 0.3");
        assert!((m.iter().sum::<f32>() / 10_000.0 - 1.0).abs() < 0.03);
        assert_eq!(m, d.mask(3, Group::Down, 10_000));
        assert_ne!(m, Dropout { step: 3, ..d }.mask(3, Group::Down, 10_000));
    }
}
