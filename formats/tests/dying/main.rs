//! Machines that die: power cuts, calls that fail, kills, full disks, readers beside a writer.
//!
//! `cargo test` runs a part of each in seconds. `CONPET_FULL=1` runs the figures of
//! `docs/robustness.md`: `CONPET_FULL=1 cargo test -p conpet-formats --test dying -- --nocapture`.

mod disk;
mod failing_calls;
mod full_disk;
mod kills;
mod power_cuts;
mod readers;
mod stage;
mod trials;

/// `full` where the full figures are asked for, else `part`.
fn figure(part: usize, full: usize) -> usize {
    if std::env::var_os("CONPET_FULL").is_some() { full } else { part }
}

/// A folder in memory where there is one: these tests sync a great deal.
fn folder() -> tempfile::TempDir {
    let shm = std::path::Path::new("/dev/shm");
    if shm.is_dir() { tempfile::tempdir_in(shm).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// A line about what was run, for the record.
fn record(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{text}");
}
