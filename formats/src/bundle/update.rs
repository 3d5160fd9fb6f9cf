//! How a bundle in the field gets its next stage, tries it, and goes back by itself if the stage is bad.
//!
//! * [`Delta`]: the bytes that a later stage has more than an earlier one, as a file;
//! * [`apply()`]: checks all of a delta, appends it, and only then moves the superblock;
//! * [`rollback()`]: makes another stage of the file the current one;
//! * [`State`]: what is kept in a small file beside the bundle: a stage on trial, stages that failed, the floor;
//! * [`start()`]: opens the stage to serve from, as `conpet-run` does, and counts the starts of a trial.

mod apply;
mod delta;
mod rollback;
mod start;
mod state;

pub use apply::{Applied, ApplyOptions, apply};
pub use delta::{Delta, write_delta};
pub use rollback::rollback;
pub use start::start;
pub use state::{Marked, State, TRIES, Trial, mark_good};

#[cfg(test)]
mod tests;
