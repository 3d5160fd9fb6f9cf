//! What a kind of PET module is: all that the formats, and what stands on them, ask of one.

use super::options::Options;
use super::point::Point;
use super::site::{Place, Places};
use crate::Result;
use crate::model_spec::ModelSpec;
use std::collections::BTreeMap;

/// A kind with its hyper-parameters, in a file of its own.
pub trait Kind {
    /// What it is and who published it, on one line.
    fn about(&self) -> &'static str;

    /// Its options as a hint shows them, e.g. `n=,rule=random|magnitude`.
    fn syntax(&self) -> &'static str {
        ""
    }

    /// Takes from a spec's text the options that are given; the others stay as they are.
    ///
    /// # Errors
    /// If one has a value that it cannot have.
    fn read(&mut self, _options: &mut Options<'_>) -> Result<()> {
        Ok(())
    }

    /// Its options in their canonical spelling, `NAME=VALUE` each.
    fn options(&self) -> Vec<String> {
        Vec::new()
    }

    /// Whether its hyper-parameters are within bounds.
    ///
    /// # Errors
    /// Names the one that is not.
    fn check(&self) -> Result<()> {
        Ok(())
    }

    /// Where it acts unless told otherwise: as published.
    fn default_places(&self) -> Places;

    /// Where it can act at all.
    fn possible_places(&self) -> Places {
        self.default_places()
    }

    /// Whether it needs all of its possible places, and not only some.
    fn needs_every_place(&self) -> bool {
        false
    }

    /// Whether it acts on what enters the lowest layer, so that no trunk can be shared below it.
    fn acts_on_input(&self) -> bool {
        false
    }

    /// The place whose tensors change what flows past a point. A kind that has none here acts
    /// otherwise: in attention, or on the input.
    fn acts_at(&self, point: Point) -> Option<Place>;

    /// The point at which what it has at a place acts: [`Kind::acts_at`] the other way round.
    fn point(&self, place: Place) -> Option<Point> {
        Point::all().find(|p| self.acts_at(*p) == Some(place))
    }

    /// The tensors it holds at a place: what follows the site's name, and the shape. Those whose shape
    /// is not known from the spec are not among them.
    fn tensors(&self, spec: &ModelSpec, place: Place) -> Vec<(&'static str, Vec<usize>)>;

    /// How many parameters it has at all its sites together, if that does not follow from
    /// [`Kind::tensors`].
    fn parameters(&self) -> Option<usize> {
        None
    }

    /// Sets the one hyper-parameter that its size grows with; false if it has none.
    fn resize(&mut self, _n: usize) -> bool {
        false
    }

    /// The tensors that what it adds is proportional to: multiplying them multiplies that.
    fn products(&self) -> &'static [&'static str];

    /// Whether it is trained through parameters that are not kept, which make its tensors.
    fn is_reparameterised(&self) -> bool {
        false
    }

    /// Whether several modules may act at once, each weighed.
    ///
    /// # Errors
    /// The reason why not, to follow the kind's name in a refusal.
    fn blends(&self) -> std::result::Result<(), &'static str> {
        Ok(())
    }

    /// Scalar reference: changes `y`, one token's numbers at a point where [`Kind::acts_at`] names the
    /// place. `held` is what a module holds there, `x` what the linear or the sublayer has read.
    ///
    /// # Panics
    /// If a tensor that is there does not fit.
    fn apply_reference(&self, _held: &Held<'_>, _x: &[f32], _y: &mut [f32]) {}
}

/// The tensors of a module at one site, by what follows the site's name.
#[derive(Debug, Clone, Default)]
pub struct Held<'a> {
    /// Tensors of floats.
    pub floats: BTreeMap<&'a str, &'a [f32]>,
    /// Tensors of integers.
    pub integers: BTreeMap<&'a str, &'a [i32]>,
}

impl<'a> Held<'a> {
    /// These tensors of floats, if they are all there.
    pub fn get<const N: usize>(&self, names: [&str; N]) -> Option<[&'a [f32]; N]> {
        let mut out = [&[][..]; N];
        for (out, name) in out.iter_mut().zip(names) {
            *out = self.floats.get(name)?;
        }
        Some(out)
    }
}
