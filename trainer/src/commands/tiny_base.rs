//! `tiny-base`: writes a tiny random base.

use conpet_formats::{Error, Result, fs, tiny};
use conpet_program::ExitStatus;
use std::path::PathBuf;

/// Arguments of `tiny-base`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The GGUF to write.
    pub out: PathBuf,
    /// Seed of its weights.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// Writes the base.
///
/// # Errors
/// If the file exists or cannot be written.
pub fn run(a: &Args) -> Result<ExitStatus> {
    let bytes = tiny::base(&tiny::TinyConfig { seed: a.seed, ..tiny::TinyConfig::default() })?;
    fs::create_new(&a.out, |w| w.write_all(&bytes).map_err(|e| Error::io("write", e)))?;
    Ok(ExitStatus::Success)
}
