//! GGUF: the native base format, read in place.
//!
//! [`Gguf`] is a validated view of a file's bytes: strings and tensors are borrowed, arrays are
//! read lazily, and nothing is allocated in proportion to a number the file declares. The rules
//! are stricter than llama.cpp's where laxness has led to faults: little-endian v2 and v3 only,
//! unique names, aligned offsets in order without overlap, every tensor inside the file. Tensor
//! types this project cannot run are listed and refused only on use.
//!
//! [`Shards`] are the files of one base: often one, or the shards that a large base is split into. A split base
//! is read as the one file that it would be in one piece ([`Whole`]).

pub mod reader;
pub mod shards;
pub mod value;
pub mod whole;
pub mod writer;

pub use reader::{Gguf, TRAILING_CAP, TensorInfo, TensorType};
pub use shards::Shards;
pub use value::{Array, Value, ValueType};
pub use whole::Whole;
pub use writer::Writer;

/// File magic.
pub const MAGIC: [u8; 4] = *b"GGUF";
/// Default alignment of tensor data, in bytes.
pub const DEFAULT_ALIGNMENT: u32 = 32;
