//! The worker pool. Its threads spin briefly for new work, then sleep.
//!
//! Work is cut into more pieces than there are threads, and each free thread takes the next piece: on an idle
//! machine all threads finish together, and on a busy one a thread that gets no processor leaves its share to
//! the others. A value does not depend on which thread computes it, so results do not depend on the thread
//! count. Nothing is allocated for a piece of work.

#![expect(unsafe_code, reason = "work borrowed from the caller's stack; disjoint pieces of one slice")]

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// How long a thread without work looks for more before it sleeps: longer than the serial steps
/// between two products of one token, far shorter than a time slice.
const SPIN: Duration = Duration::from_micros(60);

/// Number of pieces of work for each thread.
const PIECES: usize = 4;

/// A fixed set of threads.
#[derive(Debug)]
pub struct Threads {
    /// The other `n - 1` threads; the calling thread works too.
    pool: Option<Pool>,
    n: usize,
}

impl Threads {
    /// `n` threads; 0 means one for each processor.
    pub fn new(n: usize) -> Self {
        let n = if n == 0 { thread::available_parallelism().map_or(1, Into::into) } else { n };
        // If the system gives no more threads, the caller works alone.
        let pool = (n > 1).then(|| Pool::new(n - 1)).flatten();
        Self { n: if pool.is_some() { n } else { 1 }, pool }
    }

    /// Number of threads, the caller's included.
    pub fn n(&self) -> usize {
        self.n
    }

    /// Cuts `0..total` into ranges whose starts are multiples of `align` and runs `f` on each.
    ///
    /// # Panics
    /// If `f` does, after all threads have let go of it.
    pub fn split(&self, total: usize, align: usize, f: impl Fn(Range<usize>) + Sync) {
        let step = total.div_ceil(self.n * PIECES).next_multiple_of(align.max(1)).max(1);
        let Some(pool) = self.pool.as_ref().filter(|_| step < total) else { return f(0..total) };
        let next = AtomicUsize::new(0);
        pool.run(&|| {
            loop {
                let start = next.fetch_add(step, Ordering::Relaxed);
                if start >= total {
                    break;
                }
                f(start..(start + step).min(total));
            }
        });
    }

    /// Cuts `data` into chunks of `len` and runs `f(first_chunk_number, chunks)` on contiguous runs of them.
    pub fn split_mut<T: Send>(&self, data: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
        let total = data.len() / len.max(1);
        let whole = SliceMut { ptr: data.as_mut_ptr(), len: total * len };
        self.split(total, 1, |r| {
            // SAFETY: `split` hands out disjoint ranges of `0..total`.
            f(r.start, unsafe { whole.part(r.start * len..r.end * len) });
        });
    }
}

/// A slice that several threads write in disjoint parts.
struct SliceMut<T> {
    ptr: *mut T,
    len: usize,
}

// SAFETY: the pointer comes from an exclusive borrow that outlives every use; `part` obliges its
// callers to take disjoint parts.
unsafe impl<T: Send> Sync for SliceMut<T> {}

impl<T> SliceMut<T> {
    /// # Safety
    /// * Parts alive at the same time do not overlap, and the slice outlives them.
    #[expect(clippy::mut_from_ref, reason = "the contract above")]
    unsafe fn part(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the assertion; exclusive by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(range.start), range.len()) }
    }
}

/// A piece of work with its lifetime erased; valid while [`Pool::run`] waits for the threads.
#[derive(Clone, Copy)]
struct Job(*const (dyn Fn() + Sync));

// SAFETY: what it points to is `Sync`.
unsafe impl Send for Job {}

#[derive(Debug)]
struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held by the caller that uses the pool, one at a time.
    turn: Mutex<()>,
}

struct Shared {
    /// The newest job. Locked only to store or copy it.
    job: Mutex<Option<Job>>,
    /// Counts the jobs; a change wakes the workers.
    epoch: AtomicU32,
    /// Workers that have not finished the newest job.
    busy: AtomicUsize,
    /// Workers that sleep, or are about to.
    asleep: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl Pool {
    fn new(n: usize) -> Option<Self> {
        let shared = Arc::new(Shared {
            job: Mutex::new(None),
            epoch: AtomicU32::new(0),
            busy: AtomicUsize::new(0),
            asleep: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut pool = Self { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for i in 0..n {
            let shared = Arc::clone(&pool.shared);
            // If this fails, dropping the partial pool stops the threads it has.
            pool.workers.push(thread::Builder::new().name(format!("conpet-{i}")).spawn(move || shared.work()).ok()?);
        }
        Some(pool)
    }

    /// Runs `f` on every thread of the pool and on the caller's, and waits for all.
    fn run(&self, f: &(dyn Fn() + Sync)) {
        // A second caller need not wait: it runs `f` alone, which takes all the pieces.
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::WouldBlock) => return f(),
            // An earlier job panicked; the pool itself is unharmed.
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
        };
        let s = &*self.shared;
        // SAFETY: only the lifetime changes. `Finish` waits, even when unwinding, until no worker
        // runs the job any more, and none starts one without an epoch of its own.
        let job =
            Job(unsafe { std::mem::transmute::<*const (dyn Fn() + Sync), *const (dyn Fn() + Sync + 'static)>(f) });
        if let Ok(mut slot) = s.job.lock() {
            *slot = Some(job);
        }
        s.busy.store(self.workers.len(), Ordering::Relaxed);
        s.epoch.fetch_add(1, Ordering::SeqCst);
        if s.asleep.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|w| w.thread().unpark());
        }
        let finish = Finish(s);
        f();
        drop(finish);
        if s.panicked.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a worker thread panicked"));
        }
    }
}

/// Waits for the workers when dropped.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        let mut spins = 0u32;
        while self.0.busy.load(Ordering::Acquire) > 0 {
            spins += 1;
            // On a busy machine the worker may need this very processor.
            if spins.is_multiple_of(512) { thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

impl Shared {
    fn work(&self) {
        let mut seen = 0;
        loop {
            seen = self.next(seen);
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let job = self.job.lock().ok().and_then(|slot| *slot);
            if let Some(Job(f)) = job {
                // SAFETY: the caller of `run` waits for `busy`, which counts this worker, to fall.
                let f = unsafe { &*f };
                if catch_unwind(AssertUnwindSafe(f)).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.busy.fetch_sub(1, Ordering::Release);
        }
    }

    /// Waits for an epoch other than `seen`.
    fn next(&self, seen: u32) -> u32 {
        let begin = Instant::now();
        loop {
            for _ in 0..128 {
                let now = self.epoch.load(Ordering::Acquire);
                if now != seen {
                    return now;
                }
                std::hint::spin_loop();
            }
            if begin.elapsed() > SPIN {
                break;
            }
        }
        self.asleep.fetch_add(1, Ordering::SeqCst);
        let now = loop {
            // The caller changes the epoch before it looks for sleepers, and a worker counts itself as asleep
            // before it looks at the epoch: at least one of the two sees the other.
            let now = self.epoch.load(Ordering::SeqCst);
            if now != seen {
                break now;
            }
            thread::park();
        };
        self.asleep.fetch_sub(1, Ordering::SeqCst);
        now
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for w in self.workers.drain(..) {
            w.thread().unpark();
            // A worker's panic was already caught and passed to the caller of `run`.
            let _ = w.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_visited_once_for_any_thread_count() {
        for n in [1, 2, 3, 7] {
            let t = Threads::new(n);
            for total in [0, 1, 2, 5, 16, 33, 1000] {
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

    #[test]
    fn work_after_sleep_from_several_callers_and_after_a_panic() {
        let t = Threads::new(3);
        let sum = |n: usize| {
            let total = AtomicUsize::new(0);
            t.split(n, 1, |r| {
                total.fetch_add(r.sum::<usize>(), Ordering::Relaxed);
            });
            assert_eq!(total.into_inner(), n * (n - 1) / 2);
        };
        for i in 0..200 {
            if i % 50 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
            sum(100 + i);
        }
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| (0..200).for_each(|i| sum(50 + i)));
            }
        });
        let broken = catch_unwind(AssertUnwindSafe(|| {
            t.split(100, 1, |r| assert!(!r.contains(&70), "on purpose"));
        }));
        assert!(broken.is_err());
        sum(100);
    }
}
