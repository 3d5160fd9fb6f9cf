//! What can go wrong while running a model, beyond the bytes themselves.

pub use conpet_formats::{Code, Error, Result};

/// A request that this engine, base or bundle cannot serve: names the value and the remedy.
pub(crate) fn refuse(message: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::new(Code::Unsupported, message).hint(hint)
}
