//! Groups of linears that read the same input and are computed as one product in training.

use conpet_formats::model_spec::ModelSpec;
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

    /// Its linears, as indices into [`ModelSpec::linears`] and [`Place::ALL`].
    pub const fn linears(self) -> Range<usize> {
        match self {
            Self::Qkv => 0..3,
            Self::Output => 3..4,
            Self::GateUp => 4..6,
            Self::Down => 6..7,
        }
    }

    /// Its linears, each with its columns of the group's output.
    pub fn columns(self, spec: &ModelSpec) -> impl Iterator<Item = (Place, Range<usize>)> {
        let shapes = spec.linears();
        self.linears().scan(0, move |at, i| {
            *at += shapes[i].1;
            Some((Place::ALL[i], *at - shapes[i].1..*at))
        })
    }

    /// Number of columns of its output.
    pub fn width(self, spec: &ModelSpec) -> usize {
        self.linears().map(|i| spec.linears()[i].1).sum()
    }
}
