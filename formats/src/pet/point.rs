//! Points: where in a layer something flows past that a module may change.
//!
//! A layer is `m = x + attn(norm x)`, `y = m + ffn(norm m)`, in which `attn` ends with the linear
//! [`Place::Output`] and `ffn` with [`Place::Down`]; these two stand for their sublayers. In families
//! that norm what a sublayer gives, that norm belongs to the sublayer.

use super::site::{Place, Places};

/// A point of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Point {
    /// What a linear is about to read, `[n, in]`.
    In(Place),
    /// What a linear or a norm has given, `[n, out]`.
    Out(Place),
    /// Beside a sublayer: zeros `[n, hidden]`, to which is added what joins the sublayer's result.
    Aside(Place),
    /// What a sublayer is about to add, `[n, hidden]`.
    Add(Place),
    /// What leaves the layer, `[n, hidden]`.
    Layer,
}

impl Point {
    /// The linear whose output this is, if it is one.
    pub(super) fn linear(self) -> Option<Place> {
        match self {
            Self::Out(place) if Places::LINEARS.has(place) => Some(place),
            _ => None,
        }
    }

    /// Every point of a layer.
    pub fn all() -> impl Iterator<Item = Self> {
        let linears = Place::ALL.into_iter().take_while(|p| *p != Place::AttnNorm);
        let norms = [Place::AttnNorm, Place::FfnNorm];
        let sublayers = [Place::Output, Place::Down].into_iter().flat_map(|p| [Self::Aside(p), Self::Add(p)]);
        let around = linears.flat_map(|p| [Self::In(p), Self::Out(p)]);
        around.chain(norms.map(Self::Out)).chain(sublayers).chain([Self::Layer])
    }
}
