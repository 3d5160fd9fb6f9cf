//! The commands, one file each with its arguments and its code. They are listed in [`crate::cli`].

pub mod add;
pub mod compare;
pub mod eval;
pub mod probe;
pub mod report;
pub mod stream;
pub mod sweep;
pub mod tiny_base;

mod engine;
mod settings;
