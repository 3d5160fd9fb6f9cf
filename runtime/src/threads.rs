//! The threads that compute: one pool, static partition.
//!
//! The caller is one of the workers, so one thread needs no pool at all. Work is cut into as many
//! contiguous ranges as there are threads; which range computes a number never changes the
//! number, so results do not depend on the thread count.

use std::ops::Range;

/// A fixed set of threads.
#[derive(Debug)]
pub struct Threads {
    /// The other `n - 1` threads.
    pool: Option<rayon::ThreadPool>,
    n: usize,
}

impl Threads {
    /// `n` threads; 0 means one for each processor.
    pub fn new(n: usize) -> Self {
        let n = if n == 0 { std::thread::available_parallelism().map_or(1, Into::into) } else { n };
        // Where the system refuses more threads, the caller works alone.
        let pool = (n > 1)
            .then(|| {
                rayon::ThreadPoolBuilder::new().num_threads(n - 1).thread_name(|i| format!("conpet-{i}")).build().ok()
            })
            .flatten();
        Self { n: if pool.is_some() { n } else { 1 }, pool }
    }

    /// How many.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Cuts `0..total` into ranges whose starts are multiples of `align` and runs `f` on each.
    pub fn split(&self, total: usize, align: usize, f: impl Fn(Range<usize>) + Sync) {
        let step = total.div_ceil(self.n).next_multiple_of(align.max(1)).max(1);
        let Some(pool) = self.pool.as_ref().filter(|_| step < total) else { return f(0..total) };
        let f = &f;
        pool.in_place_scope(|s| {
            let mut start = step;
            while start < total {
                let range = start..(start + step).min(total);
                s.spawn(move |_| f(range));
                start += step;
            }
            f(0..step);
        });
    }

    /// Cuts `data` into chunks of `len` and runs `f(first_chunk_number, chunks)` on contiguous runs of them.
    pub fn split_mut<T: Send>(&self, data: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let total = data.len() / len.max(1);
        let step = total.div_ceil(self.n).max(1);
        let Some(pool) = self.pool.as_ref().filter(|_| step < total) else { return f(0, data) };
        let f = &f;
        pool.in_place_scope(|s| {
            let (mine, mut rest) = data.split_at_mut(step * len);
            let mut at = step;
            while !rest.is_empty() {
                let (part, tail) = rest.split_at_mut((step * len).min(rest.len()));
                let first = at;
                s.spawn(move |_| f(first, part));
                (at, rest) = (at + step, tail);
            }
            f(0, mine);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_item_is_visited_once_for_any_thread_count() {
        for n in [1, 2, 3, 7] {
            let t = Threads::new(n);
            for total in [0, 1, 2, 5, 16, 33] {
                let seen: Vec<AtomicUsize> = (0..total).map(|_| AtomicUsize::new(0)).collect();
                t.split(total, 4, |r| {
                    assert!(r.start % 4 == 0 || r.is_empty());
                    r.for_each(|i| {
                        seen[i].fetch_add(1, Ordering::Relaxed);
                    });
                });
                assert!(seen.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{n} threads, {total} items");
                let mut data = vec![0; total * 3];
                t.split_mut(&mut data, 3, |first, part| {
                    part.chunks_mut(3).enumerate().for_each(|(i, c)| c.fill(first + i + 1));
                });
                assert!(data.iter().enumerate().all(|(i, v)| *v == i / 3 + 1));
            }
        }
    }
}
