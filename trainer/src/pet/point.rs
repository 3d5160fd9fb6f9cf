//! The points of a layer as they come in training: those of [`pet::Point`], grouped.
//!
//! A group's linears are one product here, so what each of them gives is a range of columns at one
//! point. What is added beside a sublayer and what changes the sublayer's own result meet at one
//! point too, where the result is about to be added.

use super::group::Group;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{self, Place};
use std::ops::Range;

/// A point of a layer (`decoder/layer.rs`), in forward order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Point {
    /// After the norm before attention.
    AttnNorm,
    /// After q, k and v.
    Qkv,
    /// In attention.
    Attention,
    /// After its output projection.
    Output,
    /// What attention is about to add; the input is what q, k and v read.
    AttnAdd,
    /// After the norm before the feed-forward layer.
    FfnNorm,
    /// After gate and up.
    GateUp,
    /// Between the feed-forward's halves.
    Hidden,
    /// After down.
    Down,
    /// What the feed-forward layer is about to add; the input is what gate and up read.
    FfnAdd,
    /// What leaves the layer.
    Layer,
}

impl Point {
    /// All of them, in forward order.
    pub const ALL: [Self; Self::N] = [
        Self::AttnNorm,
        Self::Qkv,
        Self::Attention,
        Self::Output,
        Self::AttnAdd,
        Self::FfnNorm,
        Self::GateUp,
        Self::Hidden,
        Self::Down,
        Self::FfnAdd,
        Self::Layer,
    ];

    /// How many there are.
    pub const N: usize = Self::Layer as usize + 1;

    /// Right after these linears.
    pub const fn after(group: Group) -> Self {
        match group {
            Group::Qkv => Self::Qkv,
            Group::Output => Self::Output,
            Group::GateUp => Self::GateUp,
            Group::Down => Self::Down,
        }
    }

    /// The linears it comes right after.
    pub fn group(self) -> Option<Group> {
        Group::ALL.into_iter().find(|g| Self::after(*g) == self)
    }
}

/// A point of [`pet::Point`] as it comes in training.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// Where in the layer.
    pub point: Point,
    /// Which columns of what flows past.
    pub columns: Range<usize>,
    /// How many columns flow past.
    pub width: usize,
}

impl Spot {
    /// Where a point comes in a layer of this base; `None` for what a linear reads, other than the
    /// last of the feed-forward layer: it is shared with other linears.
    pub fn of(spec: &ModelSpec, point: pet::Point) -> Option<Self> {
        let (point, width) = match point {
            pet::Point::Out(Place::AttnNorm) => (Point::AttnNorm, spec.hidden),
            pet::Point::Out(Place::FfnNorm) => (Point::FfnNorm, spec.hidden),
            pet::Point::Out(place) => {
                let group = Group::ALL.into_iter().find(|g| g.linears().contains(&(place as usize)))?;
                let (_, columns) = group.columns(spec).find(|(p, _)| *p == place)?;
                return Some(Self { point: Point::after(group), columns, width: group.width(spec) });
            }
            pet::Point::In(Place::Down) => (Point::Hidden, spec.ffn),
            pet::Point::Aside(Place::Output) | pet::Point::Add(Place::Output) => (Point::AttnAdd, spec.hidden),
            pet::Point::Aside(Place::Down) | pet::Point::Add(Place::Down) => (Point::FfnAdd, spec.hidden),
            pet::Point::Layer => (Point::Layer, spec.hidden),
            pet::Point::In(_) | pet::Point::Aside(_) | pet::Point::Add(_) => return None,
        };
        Some(Self { point, columns: 0..width, width })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpet_formats::pet::PetKind;

    /// Fails if a kind acts where training does not pass.
    #[test]
    fn every_point_that_a_kind_acts_at_comes_in_training() {
        let spec = crate::nn::check::spec();
        for kind in PetKind::ALL {
            for point in pet::Point::all().filter(|p| kind.usual().acts_at(*p).is_some()) {
                let spot = Spot::of(&spec, point).unwrap_or_else(|| panic!("{kind:?} acts at {point:?}"));
                assert!(spot.columns.end <= spot.width && !spot.columns.is_empty(), "{point:?}: {spot:?}");
            }
        }
        let k = Spot::of(&spec, pet::Point::Out(Place::K)).unwrap();
        assert_eq!(k, Spot { point: Point::Qkv, columns: 16..24, width: 32 });
    }
}
