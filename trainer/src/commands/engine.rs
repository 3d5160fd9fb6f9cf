//! The engine that a command runs on.

use conpet_formats::Result;
use conpet_runtime::engine::Engine;
use std::path::Path;

/// An engine with batches chosen for throughput rather than low memory.
pub(super) fn open(model: &Path, threads: usize) -> Result<Engine> {
    Ok(Engine::open(model, threads)?.with_batch(512))
}
