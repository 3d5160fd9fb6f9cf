//! safetensors payloads: modules, heads, selectors, statistics, checkpoints.
//!
//! Reading is the stock crate behind a stricter check; writing is our own, because bundles need
//! the same content to be the same bytes: names sorted, one spelling of the header, every tensor
//! 64-byte aligned by explicit zero `__pad.N` tensors.

mod reader;
mod tensor;
mod writer;

pub use reader::Tensors;
pub use tensor::{Dtype, Tensor};
pub use writer::TensorsWriter;

/// Alignment of the data section and of each tensor, in bytes.
pub const ALIGN: usize = 64;
/// Longest header accepted, in bytes.
pub const HEADER_CAP: usize = 1 << 20;
/// Prefix of padding tensors.
pub(crate) const PAD: &str = "__pad.";

#[cfg(test)]
mod tests;
