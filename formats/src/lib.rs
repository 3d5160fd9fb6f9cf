//! Bytes and contracts of ConPET.
//!
//! This crate is the ground of the workspace and its trust boundary: it parses hostile files
//! from `&[u8]`, never panics on them, and declares what trainer and runtime must agree on.
//! It knows no devices, no threads and no model arithmetic beyond the scalar references that
//! define each formula.
//!
//! * files: [`gguf`] (bases), [`tensors`] (safetensors payloads), [`bundle`] (`.cpb`),
//!   [`mmap`] and [`fs`] below them; [`exchange`] with other programs' formats;
//! * numbers: [`quant`] (block types), [`decimal`] (exact decimals in manifests);
//! * contracts: [`model_spec`], [`feature`], [`pet`], [`head`], [`choice`], [`selector`] (with [`hidden`],
//!   [`ngrams`] and [`novelty`] beside it), [`fingerprint`].

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
pub mod selector;
pub mod template;
pub mod tensors;
pub mod tiny;

pub use error::{Code, Error, Result};
