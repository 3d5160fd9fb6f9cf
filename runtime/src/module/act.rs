//! What a part of a module does in a layer, and with what.

use super::payload::Factor;
use crate::cpu::Cpu;
use crate::kernels::Kernels;
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::{PetKind, Place, Places, Site};
use std::fmt::Debug;

/// A point of a layer, `m = x + attn(norm x)`, `y = m + ffn(norm m)`. Attention goes by its last linear
/// [`Place::Output`], the feed-forward layer by [`Place::Down`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// What a linear is about to read.
    In(Place),
    /// What a linear or a norm has given.
    Out(Place),
    /// Beside a sublayer: zeros, to which is added what joins its result.
    Aside(Place),
    /// What a sublayer is about to add.
    Add(Place),
    /// What leaves the layer.
    Layer,
}

impl Point {
    /// The site whose parts act here.
    pub(crate) fn site(self, layer: usize) -> Site {
        let place = match self {
            Self::In(p) | Self::Out(p) | Self::Aside(p) | Self::Add(p) => p,
            Self::Layer => Place::Down,
        };
        Site { layer, place }
    }
}

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

/// A part of a module that changes what flows past a point.
pub(super) trait Act: Debug + Send + Sync {
    /// Its kind.
    fn kind(&self) -> PetKind;

    /// Whether it acts at a point of a layer.
    fn acts(&self, layer: usize, point: Point) -> bool;

    /// Changes `y [n, ..]` where it acts; `x` is what the linear or the sublayer there has read.
    /// `work [>= n * self.work()]`.
    fn act(&self, at: &At<'_>, point: Point, x: &[f32], y: &mut [f32], work: &mut [f32]);

    /// What it changes depends on what flows there, so that several of a blend must read the same.
    fn reads_flow(&self) -> bool {
        false
    }

    /// Work space for each token, in numbers.
    fn work(&self) -> usize {
        0
    }

    /// Sublayers beside which it runs.
    fn aside(&self) -> Places {
        Places::default()
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
