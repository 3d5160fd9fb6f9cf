//! The points of a layer in training: those of [`pet::Point`], grouped.
//!
//! A group's linears are one product here, so the output of each is a range of columns at one point. What runs
//! beside a sublayer and what changes the sublayer's result also act at one point, just before the result is
//! added.

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
    /// Inside attention.
    Attention,
    /// After attention's output projection.
    Output,
    /// The result that attention is about to add; the input is that of q, k and v.
    AttnAdd,
    /// After the norm before the feed-forward layer.
    FfnNorm,
    /// After gate and up.
    GateUp,
    /// Between gate and down of the feed-forward layer.
    Hidden,
    /// After down.
    Down,
    /// The result that the feed-forward layer is about to add; the input is that of gate and up.
    FfnAdd,
    /// The output of the layer.
    Layer,
}

impl Point {
    /// All points, in forward order.
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

    /// Number of points.
    pub const N: usize = Self::Layer as usize + 1;

    /// The point right after a group of linears.
    pub const fn after(group: Group) -> Self {
        match group {
            Group::Qkv => Self::Qkv,
            Group::Output => Self::Output,
            Group::GateUp => Self::GateUp,
            Group::Down => Self::Down,
        }
    }

    /// The group of linears right before it.
    pub fn group(self) -> Option<Group> {
        Group::ALL.into_iter().find(|g| Self::after(*g) == self)
    }
}

/// A point of [`pet::Point`] in training terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spot {
    /// The point of the layer.
    pub point: Point,
    /// Columns of the activations at that point.
    pub columns: Range<usize>,
    /// Width of the activations at that point.
    pub width: usize,
}

impl Spot {
    /// The spot of a point in a layer of this base. `None` for points that training does not have, such as the
    /// input of q, k or v, which other linears share.
    pub fn of(spec: &ModelSpec, point: pet::Point) -> Option<Self> {
        let (point, width) = match point {
            pet::Point::Out(place) if !place.exists(spec) => return None,
            pet::Point::Out(Place::AttnNorm) => (Point::AttnNorm, spec.hidden),
            pet::Point::Out(Place::FfnNorm) => (Point::FfnNorm, spec.hidden),
            pet::Point::Out(place) => {
                let at = |g: Group| Some((g, g.columns(spec).find(|(p, _)| *p == place)?.1));
                let (group, columns) = Group::ALL.into_iter().find_map(at)?;
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

    /// Fails if a kind acts at a point that training does not have.
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
