//! Learning for ConPET: PET modules and selectors over a frozen quantized base, on candle.

pub mod decoder;
pub mod fit;
pub mod nn;
pub mod optim;
pub mod rng;
