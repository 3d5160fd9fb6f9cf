//! The error type is that of the formats: every fault ends in bytes, a request or a base.

pub use conpet_formats::{Code, Error, Result};
