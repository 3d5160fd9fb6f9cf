//! The ConPET engine: memory-mapped quantized inference with modules chosen from the input.
//!
//! A prompt goes `tokenizer -> trunk -> decide -> branch -> head | sampler`, written once in [`answer`]
//! and [`text`]. Under it are [`session`] (many sequences, one step), [`skills`] (a bundle's modules,
//! heads and selector), [`device`] (where layers run), [`blend`] (which modules are in force), [`kv`], [`base`]
//! (mapped weights), [`kernels`] and [`threads`]. Training is in the crate `conpet-trainer`, which is built on
//! this one, so that what is measured is what runs.

mod aligned;
pub mod answer;
mod attention;
pub mod base;
pub mod batch;
pub mod blend;
mod budget;
pub mod chat;
mod choice;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod commands;
pub mod cpu;
mod decoder;
pub mod device;
pub mod embedding;
pub mod engine;
pub mod error;
pub mod features;
pub mod head;
pub mod kernels;
pub mod kv;
pub mod memory;
pub mod module;
pub mod norm;
pub mod perplexity;
pub mod prompt;
pub mod rope;
pub mod sampler;
pub mod select;
pub mod session;
pub mod skills;
pub mod text;
pub mod threads;
pub mod tokenizer;

pub use conpet_formats::{Code, Error, Result};
