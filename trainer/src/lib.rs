//! Learning for ConPET: PET modules and selectors over a frozen quantized base, on candle.
//!
//! A task goes `stream -> data (the runtime's trunk) -> fit (decoder + nn + optim) + selectors ->
//! bundle append -> evaluate (the runtime's engine) -> report`, led by [`run`]. Methods are recipes
//! over these, one file each under [`method`].

pub mod cli;
pub mod commands;
pub mod compare;
pub mod config;
pub mod data;
pub mod decoder;
pub mod evaluate;
pub mod fit;
pub mod method;
pub mod metrics;
pub mod nn;
pub mod optim;
pub mod pet;
pub mod probe;
pub mod progress;
pub mod report;
pub mod rng;
pub mod run;
pub mod selectors;
pub mod stream;
pub mod sweep;
