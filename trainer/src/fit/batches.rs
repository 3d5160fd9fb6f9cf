//! The rows of each training step.

use crate::rng::Stream;
use std::ops::Range;

/// Decides which rows each step trains on.
pub trait Batches: Sync {
    /// Number of steps.
    fn steps(&self) -> u64;
    /// Rows of a step; always the same for the same step.
    fn rows(&self, step: u64) -> Vec<usize>;
}

/// Shuffled passes over all rows, with rows of similar length together.
#[derive(Debug)]
pub struct Epochs {
    batches: Vec<Vec<usize>>,
}

impl Epochs {
    /// `epochs` passes over all rows in batches of `batch`: see [`Epochs::over`].
    pub fn new(lens: &[usize], batch: usize, epochs: usize, seed: u64, name: &str) -> Self {
        Self::over((0..lens.len()).collect(), lens, batch, epochs, seed, name)
    }

    /// `epochs` passes over `rows` (one may be listed more than once) in batches of `batch`. Within windows of
    /// 16 batches rows are sorted by length, so that the rows of a batch have similar lengths; then the order
    /// of the batches is shuffled.
    pub fn over(rows: Vec<usize>, lens: &[usize], batch: usize, epochs: usize, seed: u64, name: &str) -> Self {
        let mut batches = Vec::new();
        for e in 0..epochs {
            let mut rng = Stream::new(seed, &format!("{name}/shuffle"), e as u64);
            let mut rows = rows.clone();
            rng.shuffle(&mut rows);
            let mut these: Vec<Vec<usize>> = rows
                .chunks_mut(batch * 16)
                .flat_map(|window| {
                    window.sort_by_key(|i| (lens[*i], *i));
                    window.chunks(batch).map(<[usize]>::to_vec).collect::<Vec<_>>()
                })
                .collect();
            rng.shuffle(&mut these);
            batches.extend(these);
        }
        Self { batches }
    }
}

impl Batches for Epochs {
    fn steps(&self) -> u64 {
        self.batches.len() as u64
    }
    fn rows(&self, step: u64) -> Vec<usize> {
        self.batches[step as usize].clone()
    }
}

/// ConPET's dynamic sampling: a fixed number of steps; half of each batch are new rows, half old ones drawn
/// uniformly over tasks and then over the task's rows ("policy 2" of the published code).
#[derive(Debug)]
pub struct Mixture {
    /// Rows of each old task and then of the new one, as ranges of the joined rows.
    pub pools: Vec<Range<usize>>,
    /// Rows in a batch.
    pub batch: usize,
    /// Number of steps: the same for every task.
    pub steps: u64,
    /// Seed of the draws.
    pub seed: u64,
    /// Name of the random stream.
    pub name: String,
}

impl Batches for Mixture {
    fn steps(&self) -> u64 {
        self.steps
    }

    fn rows(&self, step: u64) -> Vec<usize> {
        let mut rng = Stream::new(self.seed, &format!("{}/replay", self.name), step);
        let (new, old) = (&self.pools[self.pools.len() - 1], &self.pools[..self.pools.len() - 1]);
        let n_new = (self.batch / 2).max(1);
        let mut rows: Vec<usize> = (0..n_new).map(|_| new.start + rng.below(new.len())).collect();
        for _ in n_new..self.batch {
            let pool = &old[rng.below(old.len())];
            rows.push(pool.start + rng.below(pool.len()));
        }
        rng.shuffle(&mut rows);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_visit_every_row_once_and_group_lengths() {
        let lens: Vec<usize> = (0..100).map(|i| i * 37 % 50).collect();
        let e = Epochs::new(&lens, 8, 2, 1, "x");
        let mut seen: Vec<usize> = (0..e.steps()).flat_map(|s| e.rows(s)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).flat_map(|i| [i, i]).collect::<Vec<_>>());
        let spread = |s: u64| {
            let l: Vec<usize> = e.rows(s).iter().map(|i| lens[*i]).collect();
            l.iter().max().unwrap() - l.iter().min().unwrap()
        };
        assert!((0..e.steps()).map(spread).sum::<usize>() / (e.steps() as usize) < 15);
    }

    #[test]
    fn the_mixture_is_half_new_and_task_uniform_at_constant_cost() {
        // Old tasks of very different size are drawn equally often.
        let m = Mixture { pools: vec![0..10, 10..1010, 1010..1100], batch: 8, steps: 500, seed: 1, name: "x".into() };
        let mut counts = [0usize; 3];
        for s in 0..m.steps() {
            let rows = m.rows(s);
            assert_eq!(rows.len(), 8);
            assert_eq!(rows, m.rows(s), "the same step draws the same rows");
            rows.iter().for_each(|i| counts[m.pools.iter().position(|p| p.contains(i)).unwrap()] += 1);
        }
        assert_eq!(counts[2], 2000);
        assert!(counts[0].abs_diff(counts[1]) < 200, "{counts:?}");
    }
}
