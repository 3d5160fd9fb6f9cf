//! Groups of linears that read the same input and are computed as one product in training.

use conpet_formats::model_spec::{Linear, ModelSpec};
use conpet_formats::pet::Place;
use std::ops::Range;

/// A group of linears of a layer that read the same input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Query, key and value.
    Qkv,
    /// The attention's output.
    Output,
    /// The feed-forward layer's gate and up.
    GateUp,
    /// The feed-forward layer's down.
    Down,
}

impl Group {
    /// All four, in forward order.
    pub const ALL: [Self; 4] = [Self::Qkv, Self::Output, Self::GateUp, Self::Down];

    /// Its linears in a layer of this base, in order.
    pub fn linears(self, spec: &ModelSpec) -> Vec<Linear> {
        let all: &[Linear] = match self {
            Self::Qkv => &[Linear::Q, Linear::K, Linear::V],
            Self::Output => &[Linear::Output],
            Self::GateUp => &[Linear::Gate, Linear::Up],
            Self::Down => &[Linear::Down],
        };
        all.iter().copied().filter(|l| spec.has_linear(*l)).collect()
    }

    /// Its linears, each with its columns of the group's output.
    pub fn columns(self, spec: &ModelSpec) -> impl Iterator<Item = (Place, Range<usize>)> {
        self.linears(spec).into_iter().scan(0, move |at, l| {
            let out = spec.shape(l).0;
            *at += out;
            Some((Place::ALL[l as usize], *at - out..*at))
        })
    }

    /// Number of columns of its output.
    pub fn width(self, spec: &ModelSpec) -> usize {
        self.linears(spec).into_iter().map(|l| spec.shape(l).0).sum()
    }
}
