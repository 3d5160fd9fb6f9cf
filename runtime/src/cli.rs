//! What the commands of `conpet-run` share of its command line; flags are llama.cpp's where one exists.
//!
//! Each group of flags stands beside what it stands for: [`Common`] opens base and bundle, [`Sampling`] is
//! how tokens are chosen, [`InputArgs`] are the inputs and how each is answered or refused.

mod common;
mod inputs;
mod limit;
mod sampling;

pub use common::Common;
pub(crate) use common::{need, task_of, task_or_choice};
pub use inputs::InputArgs;
pub(crate) use inputs::Inputs;
pub(crate) use limit::{count_or_all, say_if_cut};
pub use sampling::Sampling;
