//! Rotary position embeddings, and the ways to stretch them to longer contexts.
//!
//! Whatever the way, what is left is one frequency for each pair of a head's elements, and a factor on
//! the rotated values. Both are computed once, here.

use std::f64::consts::PI;

/// Which pairs of a head's elements RoPE rotates (Su et al. 2021).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// Adjacent pairs `(2i, 2i+1)`: what llama-arch GGUF files expect (their q/k rows are permuted).
    Adjacent,
    /// Halves `(i, i + d/2)`: the Hugging Face layout, kept by qwen2, gemma and others.
    Halves,
}

/// A rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Which pairs rotate.
    pub kind: RopeKind,
    /// Base frequency.
    pub base: f32,
    /// How many of a head's elements rotate; even, `<= head_dim`.
    pub dim: usize,
    /// Radians that each pair turns from one position to the next, `[dim / 2]`.
    pub frequencies: Vec<f64>,
    /// Factor on rotated values.
    pub magnitude: f32,
}

/// What YaRN (Peng et al. 2023, arXiv 2309.00071) is told.
#[derive(Debug, Clone, Copy)]
pub(super) struct Yarn {
    /// How many times the context is longer than the original.
    pub(super) factor: f64,
    /// The context the base was trained with before.
    pub(super) original: usize,
    /// Turns within the original context from which a pair keeps its frequency.
    pub(super) beta_fast: f64,
    /// Turns within it below which a pair is slowed by the whole factor.
    pub(super) beta_slow: f64,
}

impl Rope {
    /// An embedding that is not stretched: pair `i` turns by `base^(-2i / dim)` at each position.
    pub fn new(kind: RopeKind, base: f32, dim: usize) -> Self {
        let frequency = |i| f64::from(base).powf(-2.0 * i as f64 / dim as f64);
        Self { kind, base, dim, frequencies: (0..dim / 2).map(frequency).collect(), magnitude: 1.0 }
    }

    /// Whether it is stretched in any way.
    pub fn is_scaled(&self) -> bool {
        *self != Self::new(self.kind, self.base, self.dim)
    }

    /// Slows all pairs alike (position interpolation, Chen et al. 2023).
    pub(super) fn slowed(mut self, factor: f64) -> Self {
        self.frequencies.iter_mut().for_each(|f| *f /= factor);
        self
    }

    /// Slows each pair by a factor of its own, `[dim / 2]`.
    pub(super) fn slowed_by(mut self, factors: &[f32]) -> Self {
        self.frequencies.iter_mut().zip(factors).for_each(|(f, by)| *f /= f64::from(*by));
        self
    }

    /// Slows the pairs that turn seldom by the whole factor, those that turn often not at all, and grows
    /// what is rotated by `1 + ln(factor) / 10`. The bounds between them are whole pairs, as in llama.cpp.
    pub(super) fn yarn(mut self, y: Yarn) -> Self {
        let (dim, base) = (self.dim as f64, f64::from(self.base));
        let pair = |turns: f64| dim * (y.original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * base.ln());
        let low = pair(y.beta_fast).floor().max(0.0);
        let high = pair(y.beta_slow).ceil().min(dim - 1.0);
        for (i, f) in self.frequencies.iter_mut().enumerate() {
            let slow = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            *f = *f / y.factor * slow + *f * (1.0 - slow);
        }
        self.magnitude *= 1.0 + 0.1 * (y.factor as f32).ln();
        self
    }

    /// Multiplies the factor on rotated values.
    pub(super) fn grown(mut self, by: f32) -> Self {
        self.magnitude *= by;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Rope {
        Rope::new(RopeKind::Halves, 10_000.0, 8)
    }

    #[test]
    fn each_way_to_stretch_does_what_its_paper_says() {
        assert_eq!(
            plain().frequencies,
            [1.0, 0.1, 0.01, 0.001]
                .map(|f: f64| f)
                .to_vec()
                .iter()
                .map(|f| f64::from(10_000f32).powf(f.log10() / 4.0))
                .collect::<Vec<_>>()
        );
        assert!(!plain().is_scaled());
        let slowed = plain().slowed(4.0);
        assert!(slowed.is_scaled() && slowed.frequencies[1] == plain().frequencies[1] / 4.0);
        assert_eq!(plain().slowed_by(&[1.0, 2.0, 4.0, 8.0]).frequencies[3], plain().frequencies[3] / 8.0);
        // 32 turns in 2048 positions: pair 1.01 of 4 (rounded down to 1); one turn: pair 2.5 (up to 3).
        let yarn = plain().yarn(Yarn { factor: 8.0, original: 2048, beta_fast: 32.0, beta_slow: 1.0 });
        let by = |i: usize| plain().frequencies[i] / yarn.frequencies[i];
        assert_eq!((by(0), by(1), by(3)), (1.0, 1.0, 8.0));
        assert!((by(2) - 1.0 / (0.5 / 8.0 + 0.5)).abs() < 1e-12);
        assert!((yarn.magnitude - 1.207_944).abs() < 1e-6);
    }
}
