//! The processor: an instruction set and the worker pool that runs it.

use crate::kernels::{Kernels, MatrixRef};
use crate::threads::Threads;
use std::sync::Arc;

/// Below this many values, waking another thread costs more than the work.
const SMALL: usize = 1 << 14;

/// Kernels and the threads that run them. A handle: clones share the worker pool.
#[derive(Debug, Clone)]
pub struct Cpu {
    /// The instruction set.
    pub kernels: Kernels,
    /// The worker pool.
    pub threads: Arc<Threads>,
}

impl Cpu {
    /// Takes the fastest kernels of this processor and starts `threads` threads; 0 is one for each processor.
    pub fn new(threads: usize) -> Self {
        Self { kernels: Kernels::detect(), threads: Arc::new(Threads::new(threads)) }
    }

    /// Computes `y [n, rows] = x [n, cols] · wᵀ`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn matmul(&self, w: MatrixRef<'_>, x: &[f32], y: &mut [f32], n: usize) {
        self.kernels.matmul(&self.threads, w, x, y, n);
    }

    /// Runs `f(row number, row)` on each row of `data [rows, width]`, on several threads if the data is large.
    pub fn by_row(&self, data: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
        let part = |first: usize, data: &mut [f32]| {
            data.chunks_exact_mut(width).enumerate().for_each(|(i, x)| f(first + i, x));
        };
        if data.len() < SMALL { part(0, data) } else { self.threads.split_mut(data, width, part) }
    }
}
