//! A row-major matrix that several threads fill, each writing its own columns.

use std::marker::PhantomData;

/// A matrix `[n, stride]`, written by ranges of columns.
pub(super) struct Columns<'a> {
    ptr: *mut f32,
    len: usize,
    stride: usize,
    owner: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer comes from an exclusive borrow that outlives `Columns`; `write` obliges its
// callers to keep columns disjoint between threads.
unsafe impl Sync for Columns<'_> {}
// SAFETY: as above; `f32` has no ties to a thread.
unsafe impl Send for Columns<'_> {}

impl<'a> Columns<'a> {
    pub(super) fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self { ptr: data.as_mut_ptr(), len: data.len(), stride, owner: PhantomData }
    }

    /// Stores the first `width` values of each row of `block [n, pitch]` at columns `first..first + width`.
    ///
    /// # Safety
    /// * No other thread may access these columns while this runs.
    pub(super) unsafe fn write(&self, first: usize, width: usize, block: &[f32], pitch: usize) {
        assert!(first + width <= self.stride && width <= pitch && block.len() / pitch * self.stride <= self.len);
        for (t, row) in block.chunks_exact(pitch).enumerate() {
            // SAFETY: in bounds by the assertion; exclusive by this function's contract.
            let out = unsafe { std::slice::from_raw_parts_mut(self.ptr.add(t * self.stride + first), width) };
            // With widths known at compile time, these are vector moves instead of a call.
            match (out.as_chunks_mut::<16>().0, row[..width].as_chunks::<16>().0) {
                ([out], [row]) if width == 16 => *out = *row,
                ([out, out2], [row, row2]) if width == 32 => (*out, *out2) = (*row, *row2),
                _ => out.copy_from_slice(&row[..width]),
            }
        }
    }

    /// Lets `store(block, to, stride)` write columns `first..first + width` of the first `n` rows: `width` numbers at
    /// each of `to + t · stride`, `t` below `n`.
    ///
    /// # Safety
    /// * No other thread may access these columns while this runs, and `store` writes nothing else.
    pub(super) unsafe fn write_by(
        &self,
        first: usize,
        width: usize,
        n: usize,
        block: &[f32],
        store: impl FnOnce(&[f32], *mut f32, usize),
    ) {
        assert!(first + width <= self.stride && n * self.stride <= self.len);
        // SAFETY: in bounds by the assertion.
        store(block, unsafe { self.ptr.add(first) }, self.stride);
    }

    /// The reverse of [`Columns::write`]: copies columns `first..first + width` of each row to the start of
    /// each row of `block [n, pitch]`.
    ///
    /// # Safety
    /// * No other thread may write these columns while this runs.
    pub(super) unsafe fn read(&self, first: usize, width: usize, block: &mut [f32], pitch: usize) {
        assert!(first + width <= self.stride && width <= pitch && block.len() / pitch * self.stride <= self.len);
        for (t, row) in block.chunks_exact_mut(pitch).enumerate() {
            // SAFETY: in bounds by the assertion; not written meanwhile by this function's contract.
            let from = unsafe { std::slice::from_raw_parts(self.ptr.add(t * self.stride + first), width) };
            row[..width].copy_from_slice(from);
        }
    }
}
