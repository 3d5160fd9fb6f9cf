//! The result of training, and the part of it that a bundle stores.

use super::recipe::Buffers;
use crate::pet::{Indices, is_module};
use conpet_formats::Result;
use conpet_formats::tensors::TensorsWriter;
use std::collections::BTreeMap;

/// The result of training.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Trained {
    /// Shapes and values by name: the module's tensors by full name (`<site>.lora_a`, ...), the head's, and the
    /// recipe's own.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    /// Positions of a sparse delta.
    pub indices: Indices,
    /// The recipe's buffers.
    pub buffers: Buffers,
    /// Number of parameters that were trained.
    pub trainable: usize,
    /// Number of steps taken.
    pub steps: u64,
    /// Rows trained on, counted in every step.
    pub rows: u64,
    /// Tokens trained on, counted in every step.
    pub tokens: u64,
    /// Seconds that training took in this process.
    pub seconds: f64,
    /// Mean loss of the last tenth of the steps.
    pub loss: f32,
}

impl Trained {
    /// The module's payload and its number of parameters.
    ///
    /// # Errors
    /// If a value cannot be stored.
    pub fn payload(&self) -> Result<(Vec<u8>, usize)> {
        let (mut w, mut parameters) = (TensorsWriter::new(), 0);
        for (name, (shape, v)) in self.tensors.iter().filter(|(n, _)| is_module(n)) {
            w.add_f16(name, shape, v)?;
            parameters += v.len();
        }
        for (name, index) in &self.indices {
            w.add_i32(name, &[index.len()], index)?;
        }
        Ok((w.finish()?, parameters))
    }

    /// Those of `sites` at which the module has a tensor: a sparse delta may have no position at some.
    pub fn held(&self, sites: &[String]) -> Vec<String> {
        let at = |s: &&String| {
            self.tensors.keys().any(|n| n.strip_prefix(s.as_str()).is_some_and(|rest| rest.starts_with('.')))
        };
        sites.iter().filter(at).cloned().collect()
    }
}
