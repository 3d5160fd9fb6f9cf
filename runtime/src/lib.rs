//! The ConPET engine: memory-mapped quantized inference with modules chosen from the input.
//!
//! A prompt goes `tokenizer -> trunk -> select -> branch (module) -> head | sampler`, led by
//! [`engine`]; under it [`base`] (mapped weights), [`forward`] (layers), [`kv`], [`kernels`],
//! [`threads`]. Everything a bundle adds is in [`skills`], [`module`], [`mod@head`], [`select`].
//! What trains is elsewhere: the trainer stands on this crate, so that what is measured is what runs.

mod aligned;
mod attention;
pub mod base;
mod budget;
pub mod chat;
pub mod choice;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod commands;
pub mod engine;
pub mod error;
pub mod features;
pub mod forward;
pub mod generate;
pub mod head;
pub mod kernels;
pub mod kv;
pub mod memory;
pub mod module;
pub mod perplexity;
pub mod sampler;
pub mod select;
pub mod skills;
pub mod threads;
pub mod tokenizer;

pub use conpet_formats::{Code, Error, Result};
