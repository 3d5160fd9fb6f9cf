//! Trains one module (and a head) on one set of examples. All methods use this loop.
//!
//! All randomness comes from streams keyed by (seed, name, step), and the optimizer's state is saved with the
//! parameters, so a run that was stopped and resumed ends with the same bits.
//!
//! A [`Job`] says what to train. `positions` chooses the positions of a sparse delta, `steps` takes the steps,
//! each a batch through `pass`; `observe` runs rows without training on them.

mod batches;
pub(crate) mod checkpoint;
mod frame;
mod job;
mod observe;
mod pass;
mod positions;
mod recipe;
mod steps;
mod trained;

pub use batches::{Batches, Epochs, Mixture};
pub use job::{Examples, Hyper, Job, Outcome, Progress, Target};
pub use observe::{features, fisher};
pub use recipe::{Buffers, Done, Extra, Gradients, HEAD, HEAD_BIAS, HEAD_WEIGHT, Labelled, Loss, Plain, Recipe};
pub use trained::Trained;

use conpet_formats::Result;

/// Runs a job to its end, or until it is stopped.
///
/// # Errors
/// If a loss or gradient is not finite (the last checkpoint stays), or a checkpoint cannot be
/// written or does not belong to this job.
pub fn fit(job: &Job<'_>, progress: &mut dyn FnMut(Progress)) -> Result<Outcome> {
    steps::train(job, positions::frame(job)?, progress)
}

#[cfg(test)]
mod tests;
