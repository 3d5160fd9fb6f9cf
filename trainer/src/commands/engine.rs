//! The engine that a command runs on.

use conpet_formats::Result;
use conpet_runtime::engine::Engine;
use std::path::Path;

/// An engine whose batches suit throughput rather than memory.
pub(super) fn open(model: &Path, threads: usize) -> Result<Engine> {
    Ok(Engine::open(model, threads)?.with_batch(512))
}
