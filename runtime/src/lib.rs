//! The ConPET engine.

pub mod kernels;
pub mod threads;
