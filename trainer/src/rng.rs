//! Random streams: ChaCha8, keyed by (seed, task, purpose, step), so that a resumed run needs no saved
//! generator state. candle's CPU generator cannot be seeded and is never used.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A random stream for one purpose.
#[derive(Debug)]
pub struct Stream(ChaCha8Rng);

impl Stream {
    /// The stream of a seed, a name (task and purpose) and a step.
    pub fn new(seed: u64, name: &str, step: u64) -> Self {
        // FNV-1a over the parts, then ChaCha's own key expansion.
        let mut h = 0xcbf2_9ce4_8422_2325u64;
        let bytes = seed.to_le_bytes().into_iter().chain(name.bytes()).chain([0xff]).chain(step.to_le_bytes());
        for b in bytes {
            h = (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        }
        Self(ChaCha8Rng::seed_from_u64(h))
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 24) as f32
    }

    /// Uniform in 0..n.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn below(&mut self, n: usize) -> usize {
        // The bias of the remainder is below 2^-32 for any data set that fits a machine.
        (self.0.next_u64() % n as u64) as usize
    }

    /// Shuffles in place (Fisher-Yates).
    pub fn shuffle<T>(&mut self, v: &mut [T]) {
        for i in (1..v.len()).rev() {
            v.swap(i, self.below(i + 1));
        }
    }

    /// `n` values uniform in [-bound, bound].
    pub fn symmetric(&mut self, n: usize, bound: f32) -> Vec<f32> {
        (0..n).map(|_| (self.uniform() * 2.0 - 1.0) * bound).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ_by_every_part_of_their_key() {
        let draw = |seed, name: &str, step| Stream::new(seed, name, step).symmetric(4, 1.0);
        assert_eq!(draw(1, "a", 0), draw(1, "a", 0));
        for other in [draw(2, "a", 0), draw(1, "b", 0), draw(1, "a", 1)] {
            assert_ne!(draw(1, "a", 0), other);
        }
        let mut v: Vec<usize> = (0..100).collect();
        Stream::new(1, "s", 0).shuffle(&mut v);
        let mut sorted = v.clone();
        sorted.sort_unstable();
        assert!(v != sorted && sorted == (0..100).collect::<Vec<_>>());
    }
}
