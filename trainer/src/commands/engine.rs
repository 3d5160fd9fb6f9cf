//! The engine that a command runs on.

use conpet_formats::Result;
use conpet_runtime::engine::Engine;
use std::path::Path;

/// An engine whose batches suit throughput rather than memory.
pub(super) fn open(model: &Path, threads: usize) -> Result<Engine> {
    let mut e = Engine::open(model, threads)?;
    e.batch = 512;
    Ok(e)
}
