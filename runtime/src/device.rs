//! A device runs ranges of layers. Weights and caches belong to it.
//!
//! The interface is at the level of the pass, not of the single operation: a device gets a batch's states and a
//! range of layers, and keeps its own weights, caches and work space.

use crate::base::Base;
use crate::batch::Span;
use crate::cpu::Cpu;
use crate::decoder::{self, Scratch};
use crate::kv::{Kv, KvType};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Runs layers of one base.
pub trait Device: Debug + Send + Sync {
    /// An empty cache of one sequence for `layers`.
    ///
    /// # Panics
    /// If `ty` does not fit the base's heads.
    fn cache(&self, layers: Range<usize>, ty: KvType) -> Kv;

    /// Runs `layers` over a batch in place.
    ///
    /// `hidden [tokens, hidden]` holds the states that have passed `layers.start` layers, and
    /// afterwards those that have passed `layers.end`. `observe(l, hidden)` is called after each
    /// layer with the number of layers passed.
    ///
    /// # Panics
    /// If `hidden` does not hold the spans' tokens.
    fn layers(
        &self,
        layers: Range<usize>,
        spans: &mut [Span<'_>],
        hidden: &mut [f32],
        observe: &mut dyn FnMut(usize, &[f32]),
    );
}

/// The CPU as a device: it computes on the weights where they lie in the mapped file.
#[derive(Debug)]
pub struct CpuDevice {
    base: Arc<Base>,
    cpu: Cpu,
    /// Work spaces that no pass is using.
    idle: Mutex<Vec<Scratch>>,
}

impl CpuDevice {
    /// A device for one base.
    pub fn new(base: Arc<Base>, cpu: Cpu) -> Self {
        Self { base, cpu, idle: Mutex::new(Vec::new()) }
    }
}

impl Device for CpuDevice {
    fn cache(&self, layers: Range<usize>, ty: KvType) -> Kv {
        Kv::new(layers, self.base.spec.kv_dim(), ty)
    }

    fn layers(
        &self,
        layers: Range<usize>,
        spans: &mut [Span<'_>],
        hidden: &mut [f32],
        observe: &mut dyn FnMut(usize, &[f32]),
    ) {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = idle().pop().unwrap_or_default();
        decoder::layers(&self.cpu, &self.base, layers, spans, hidden, &mut scratch, observe);
        idle().push(scratch);
    }
}
