//! Bottleneck adapters: `z = z + U·f(D·u + b) + c` (Houlsby et al. 2019, arXiv 1902.00751).
//!
//! The forms differ in what `u` and `z` are; for a layer `m = x + attn(a)`, `y = m + ffn(b)` with
//! normed `a` and `b`:
//! * `houlsby`: `u = z` is what attention, and what the feed-forward layer, is about to add;
//! * `pfeiffer`: `u = z = y`, once a layer (Pfeiffer et al. 2021, arXiv 2005.00247);
//! * `parallel`: `z` as in houlsby, but `u` is `a` or `b`, what the sublayer itself reads
//!   (He et al. 2022, arXiv 2110.04366); by default beside the feed-forward layer.
//!
//! The site `attn_output` stands for attention and `ffn_down` for the feed-forward layer. A module
//! holds there `D [n, hidden]`, `b [n]`, `U [hidden, n]`, `c [hidden]`.

use super::kind::{Held, Kind};
use super::options::Options;
use super::point::Point;
use super::site::{Place, Places};
use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};

/// What follows a site's name in the names of `D`, `b`, `U` and `c`.
pub const NAMES: [&str; 4] = ["adapter_down", "adapter_down_bias", "adapter_up", "adapter_up_bias"];

/// What an adapter reads and where it adds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// Reads and changes what a sublayer adds.
    Houlsby,
    /// Reads and changes the layer's output.
    Pfeiffer,
    /// Reads what a sublayer reads, and adds to what it adds.
    Parallel,
}

/// The nonlinearity `f`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Act {
    /// `x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³)))` (Hendrycks & Gimpel 2016, the tanh form).
    Gelu,
    /// `max(x, 0)`.
    Relu,
}

/// An adapter's hyper-parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Adapter {
    /// Width n of the bottleneck, 1..=65536.
    pub width: usize,
    /// Where it stands.
    pub form: Form,
    /// The nonlinearity.
    pub act: Act,
}

impl Form {
    /// All forms.
    pub const ALL: [Self; 3] = [Self::Houlsby, Self::Pfeiffer, Self::Parallel];

    /// As specs spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Houlsby => "houlsby",
            Self::Pfeiffer => "pfeiffer",
            Self::Parallel => "parallel",
        }
    }

    /// Where it stands unless told otherwise.
    pub const fn places(self) -> Places {
        match self {
            Self::Houlsby => Places::of(&[Place::Output, Place::Down]),
            Self::Pfeiffer | Self::Parallel => Places::of(&[Place::Down]),
        }
    }
}

impl Act {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Gelu, Self::Relu];

    /// As specs spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::Relu => "relu",
        }
    }

    /// `f(x)`.
    pub fn value(self, x: f32) -> f32 {
        match self {
            Self::Gelu => 0.5 * x * (1.0 + gelu_tanh(x)),
            Self::Relu => x.max(0.0),
        }
    }

    /// `f'(x)`.
    pub fn slope(self, x: f32) -> f32 {
        match self {
            Self::Gelu => {
                let t = gelu_tanh(x);
                0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * GELU * (1.0 + 3.0 * 0.044_715 * x * x)
            }
            Self::Relu => f32::from(u8::from(x > 0.0)),
        }
    }
}

/// √(2/π).
const GELU: f32 = 0.797_884_6;

fn gelu_tanh(x: f32) -> f32 {
    (GELU * (x + 0.044_715 * x * x * x)).tanh()
}

impl Default for Adapter {
    fn default() -> Self {
        Self { width: 16, form: Form::Houlsby, act: Act::Gelu }
    }
}

impl Kind for Adapter {
    fn about(&self) -> &'static str {
        "Bottleneck adapters, Houlsby et al. 2019."
    }

    fn syntax(&self) -> &'static str {
        "n=,form=houlsby|pfeiffer|parallel,act=gelu|relu"
    }

    fn read(&mut self, options: &mut Options<'_>) -> Result<()> {
        options.number("n", &mut self.width)?;
        options.choice("form", &Form::ALL, Form::name, &mut self.form)?;
        options.choice("act", &Act::ALL, Act::name, &mut self.act)
    }

    fn options(&self) -> Vec<String> {
        vec![format!("n={}", self.width), format!("form={}", self.form.name()), format!("act={}", self.act.name())]
    }

    fn check(&self) -> Result<()> {
        if self.width == 0 || self.width > 65_536 {
            return Err(Error::new(Code::Value, format!("adapter width {} is not in 1..=65536", self.width)));
        }
        Ok(())
    }

    fn default_places(&self) -> Places {
        self.form.places()
    }

    fn possible_places(&self) -> Places {
        match self.form {
            Form::Pfeiffer => self.form.places(),
            Form::Houlsby | Form::Parallel => Form::Houlsby.places(),
        }
    }

    fn acts_at(&self, point: Point) -> Option<Place> {
        match (self.form, point) {
            (Form::Houlsby, Point::Add(place)) | (Form::Parallel, Point::Aside(place)) => Some(place),
            (Form::Pfeiffer, Point::Layer) => Some(Place::Down),
            _ => None,
        }
    }

    fn tensors(&self, spec: &ModelSpec, _place: Place) -> Vec<(&'static str, Vec<usize>)> {
        let (h, n) = (spec.hidden, self.width);
        NAMES.into_iter().zip([vec![n, h], vec![n], vec![h, n], vec![h]]).collect()
    }

    fn resize(&mut self, n: usize) -> bool {
        self.width = n;
        true
    }

    fn products(&self) -> &'static [&'static str] {
        &[NAMES[2], NAMES[3]]
    }

    fn apply_reference(&self, held: &Held<'_>, x: &[f32], y: &mut [f32]) {
        if let Some(tensors) = held.get(NAMES) {
            let u = if self.form == Form::Parallel { x.to_vec() } else { y.to_vec() };
            apply_reference(self.act, tensors, &u, y);
        }
    }
}

/// Scalar reference: `z[o] += Σ_k U[o,k] f(Σ_i D[k,i] u[i] + b[k]) + c[o]`, accumulated in `f64`;
/// `[d, b, u, c]` row-major as above.
///
/// # Panics
/// If the shapes do not fit.
pub fn apply_reference(act: Act, [d, b, up, c]: [&[f32]; 4], u: &[f32], z: &mut [f32]) {
    assert_eq!((d.len(), up.len(), c.len()), (b.len() * u.len(), b.len() * z.len(), z.len()));
    let dot = |row: &[f32], x: &[f64]| row.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum::<f64>();
    let u: Vec<f64> = u.iter().map(|v| f64::from(*v)).collect();
    let low = d.chunks_exact(u.len()).zip(b).map(|(row, b)| dot(row, &u) + f64::from(*b));
    let low: Vec<f64> = low.map(|v| f64::from(act.value(v as f32))).collect();
    for ((z, row), c) in z.iter_mut().zip(up.chunks_exact(b.len())).zip(c) {
        *z = (f64::from(*z) + dot(row, &low) + f64::from(*c)) as f32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reference_matches_a_hand_computed_case() {
        // D u + b = [1·2 + 2·3 - 1, -2] = [7, -2]; relu [7, 0]; U = [[1, 5], [2, 5]], c = [10, 20].
        let mut z = [100.0, 200.0];
        let parts: [&[f32]; 4] = [&[1.0, 2.0, -1.0, 0.0], &[-1.0, 0.0], &[1.0, 5.0, 2.0, 5.0], &[10.0, 20.0]];
        apply_reference(Act::Relu, parts, &[2.0, 3.0], &mut z);
        assert_eq!(z, [117.0, 234.0]);
    }

    #[test]
    fn slopes_are_those_of_the_values() {
        for act in Act::ALL {
            for x in [-2.5f32, -0.3, 0.4, 1.7] {
                let want = (act.value(x + 1e-2) - act.value(x - 1e-2)) / 2e-2;
                // Central difference of a smooth function in f32.
                assert!((act.slope(x) - want).abs() < 1e-3, "{act:?} at {x}");
            }
        }
        assert!((Act::Gelu.value(1.0) - 0.841_19).abs() < 1e-4, "the tanh form at 1");
    }
}
