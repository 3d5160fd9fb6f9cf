//! Trainer
