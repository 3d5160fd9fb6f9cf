//! Command-line flags that the commands of `conpet-run` share. Flags have llama.cpp's names where it has the
//! same one.
//!
//! Each group of flags is defined beside the code that uses it: [`Common`] opens base and bundle, [`Sampling`]
//! says how tokens are sampled, [`InputArgs`] says where the inputs come from and what happens to one that
//! cannot be answered.

mod common;
mod inputs;
mod limit;
mod sampling;

pub use common::Common;
pub(crate) use common::{need, task_of, task_or_choice};
pub use inputs::InputArgs;
pub(crate) use inputs::{Input, Inputs};
pub(crate) use limit::{count_or_all, say_if_cut};
pub use sampling::Sampling;
