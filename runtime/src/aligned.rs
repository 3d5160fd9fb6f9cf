//! Buffers aligned to cache lines.
//!
//! The widest vector registers are as wide as a cache line: from an allocator's address, which is only aligned
//! to 16 bytes, every load and store would touch two lines.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Bytes of a cache line.
const LINE: usize = 64;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

/// A buffer of values that begins at a cache line. It grows and never shrinks.
#[derive(Debug)]
pub(crate) struct Aligned<T> {
    lines: Vec<Line>,
    numbers: PhantomData<T>,
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Self { lines: Vec::new(), numbers: PhantomData }
    }
}

impl<T> Aligned<T> {
    /// Makes room for `len` values; new ones are zero.
    pub(crate) fn reserve(&mut self, len: usize) {
        let lines = (len * size_of::<T>()).div_ceil(LINE);
        if self.lines.len() < lines {
            self.lines.reserve_exact(lines - self.lines.len());
            self.lines.resize(lines, Line::new_zeroed());
        }
    }
}

impl<T: FromBytes + IntoBytes + Immutable> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        <[T]>::ref_from_bytes(self.lines.as_bytes()).expect("a line holds whole values and is aligned for them")
    }
}

impl<T: FromBytes + IntoBytes + Immutable> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        <[T]>::mut_from_bytes(self.lines.as_mut_bytes()).expect("a line holds whole values and is aligned for them")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_at_a_line_and_are_kept_while_it_grows() {
        let mut a = Aligned::<f32>::default();
        assert!(a.is_empty());
        for len in [1, 100, 10_000] {
            a.reserve(len);
            assert!(a.len() >= len && a.as_ptr().addr().is_multiple_of(LINE));
            a[len - 1] = len as f32;
        }
        assert_eq!((a[0], a[99], a[9_999]), (1.0, 100.0, 10_000.0));
        let len = a.len();
        a.reserve(5);
        assert_eq!(a.len(), len);
    }
}
