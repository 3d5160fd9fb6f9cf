//! Bytes and contracts of ConPET.
//!
//! This crate is the ground of the workspace and its trust boundary: it parses hostile files
//! from `&[u8]`, never panics on them, and declares what trainer and runtime must agree on.
//! It knows no devices, no threads and no model arithmetic beyond the scalar references that
//! define each formula.
//!
//! Its modules stand on one another, from the ground up:
//!
//! * [`error`]: the one error type, which names the file, the place, the value and the remedy;
//! * bytes: [`bytes`] (a bounds-checked cursor), [`decimal`] (exact decimals), [`quant`] (quant types),
//!   [`mmap`] (mapped files), [`fs`] (files that survive a crash);
//! * files: [`gguf`] (bases) and [`tensors`] (safetensors payloads);
//! * contracts: [`model_spec`] (what a base computes), [`pet`] (what a module is), [`feature`] (what selectors and
//!   heads read), [`head`] and [`choice`], [`selector`] with [`hidden`], [`ngrams`], [`novelty`] and [`refusal`] beside its
//!   weights, [`template`] (a task's text);
//! * [`bundle`]: the `.cpb` file, which holds modules, heads and a selector stage by stage;
//! * above it, [`fingerprint`] (which base a bundle belongs to), [`exchange`] (other programs' formats), and [`tiny`]
//!   (small random bases, for tests).
//!
//! `ARCHITECTURE.md` has the drawing, and a test keeps to it.

pub mod bundle;
pub mod bytes;
pub mod choice;
pub mod decimal;
pub mod error;
pub mod exchange;
pub mod feature;
pub mod fingerprint;
pub mod fs;
pub mod gguf;
pub mod head;
pub mod hidden;
pub mod mmap;
pub mod model_spec;
pub mod ngrams;
pub mod novelty;
pub mod pet;
pub mod quant;
pub mod refusal;
pub mod selector;
pub mod template;
pub mod tensors;
pub mod tiny;

pub use error::{Code, Error, Result};
