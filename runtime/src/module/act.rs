//! What a part of a module does in a layer, and with what.

use super::payload::Factor;
use crate::cpu::Cpu;
use crate::kernels::Kernels;
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::{Place, Site};
use std::fmt::Debug;

/// A module's weight for the tokens of a span.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Weight<'a> {
    /// The same for all.
    Same(f32),
    /// `[tokens, stride]`: the module's own is the first of each row.
    Each(&'a [f32], usize),
}

impl Weight<'_> {
    /// Of one token.
    pub(crate) fn of(self, token: usize) -> f32 {
        match self {
            Self::Same(w) => w,
            Self::Each(w, stride) => w[token * stride],
        }
    }
}

/// Where and with what a part acts.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) cpu: &'a Cpu,
    pub(super) map: &'a Mapped,
    pub(super) layer: usize,
    pub(super) weight: Weight<'a>,
    /// What flowed past the point before any module of a blend changed it, where that may differ from
    /// what flows there now.
    pub(super) before: Option<&'a [f32]>,
}

impl At<'_> {
    pub(super) fn kernels(&self) -> Kernels {
        self.cpu.kernels
    }

    /// A stored vector, decoded into `work`.
    pub(super) fn vector<'w>(&self, f: &Factor, work: &'w mut [f32]) -> &'w [f32] {
        let m = f.matrix(self.map);
        let out = &mut work[..m.cols];
        self.cpu.kernels.dequantize_row(m, 0, out);
        out
    }
}

/// How a part of a module changes what flows past a point. Where it acts, its kind says
/// ([`conpet_formats::pet::Kind::acts_at`]).
pub(super) trait Act: Debug + Send + Sync {
    /// Whether it has tensors at a place of a layer.
    fn has(&self, layer: usize, place: Place) -> bool;

    /// Changes `y [n, ..]` with what it has at a place; `x` is what the linear or the sublayer there has
    /// read. `work [>= n * self.work()]`.
    fn act(&self, at: &At<'_>, place: Place, x: &[f32], y: &mut [f32], work: &mut [f32]);

    /// Whether what it changes depends on `y`, so that the modules of a blend must all read the same.
    fn reads_flow(&self) -> bool {
        false
    }

    /// Work space for each token, in numbers.
    fn work(&self) -> usize {
        0
    }
}

/// Something for each site of a base, found by layer and place.
#[derive(Debug, Clone)]
pub(super) struct Table<T>(Vec<[Option<T>; Place::ALL.len()]>);

impl<T> Table<T> {
    pub(super) fn new(n_layer: usize) -> Self {
        Self((0..n_layer).map(|_| [const { None }; Place::ALL.len()]).collect())
    }

    pub(super) fn set(&mut self, site: Site, value: T) {
        self.0[site.layer][site.place as usize] = Some(value);
    }

    pub(super) fn get(&self, layer: usize, place: Place) -> Option<&T> {
        self.by_index(layer, place as usize)
    }

    pub(super) fn by_index(&self, layer: usize, index: usize) -> Option<&T> {
        self.0[layer][index].as_ref()
    }
}
