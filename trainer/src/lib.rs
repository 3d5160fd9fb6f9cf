//! Training for ConPET: PET modules and selectors over a frozen quantized base, on candle.
//!
//! A task goes
//! `stream -> data (the runtime's trunk) -> fit (decoder + nn + optim) -> entries of a draft -> calibration -> bundle -> evaluate (the runtime's engine) -> report`.
//! [`services`] has every step but the last two; [`method`] and [`selectors`] combine them, one file each with
//! its own settings; [`run`] is the loop over the tasks. [`config`] joins all settings into one value.

pub mod cli;
pub mod commands;
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
pub mod services;
pub mod settings;
pub mod stream;
pub mod sweep;
