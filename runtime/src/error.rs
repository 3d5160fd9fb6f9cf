//! The error type, shared with `conpet-formats`.

pub use conpet_formats::{Code, Error, Result};
