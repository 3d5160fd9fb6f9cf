//! The heap of one thread, counted: what a parser takes at most, and in how many steps.

#![expect(unsafe_code, reason = "an allocator is unsafe by nature; every call is passed on unchanged")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, counting for each thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

fn count(more: isize) {
    // A thread that ends has no counters any more, and then nothing to count for.
    let _ = LIVE.try_with(|live| {
        live.set(live.get() + more);
        let _ = PEAK.try_with(|p| p.set(p.get().max(live.get())));
    });
    if more > 0 {
        let _ = CALLS.try_with(|c| c.set(c.get() + 1));
    }
}

// SAFETY: each method passes its arguments to the system's allocator unchanged and returns what that
// returns; counting touches only numbers of the thread and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both at once: the system may have to copy.
        count(size as isize);
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

/// What a piece of work cost.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cost {
    /// Bytes it held at most beyond those held before.
    pub(crate) peak: usize,
    /// How often it asked for memory.
    pub(crate) calls: usize,
}

/// Runs `f` on this thread and says what it cost.
pub(crate) fn cost<T>(f: impl FnOnce() -> T) -> (T, Cost) {
    let (before, calls) = (LIVE.get(), CALLS.get());
    PEAK.set(before);
    let out = f();
    (out, Cost { peak: (PEAK.get() - before).max(0) as usize, calls: CALLS.get() - calls })
}

#[test]
fn the_heap_is_counted() {
    let (v, c) = cost(|| {
        drop(vec![1u8; 3000]);
        vec![1u8; 1000]
    });
    assert!((3000..3100).contains(&c.peak) && c.calls == 2, "{c:?}");
    drop(v);
}
