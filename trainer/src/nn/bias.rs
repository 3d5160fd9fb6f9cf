//! Biases of linears and norms (Ben Zaken et al. 2022): `y += b`.

use super::matmul::View;
use super::pet::{Act, At, Group, Layout, Point};
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Place, bias};
use std::ops::Range;

/// The biases of a layer.
#[derive(Debug)]
pub struct Bias(Vec<Piece>);

#[derive(Debug)]
struct Piece {
    point: Point,
    /// Its columns of what is there, and how wide that is.
    columns: Range<usize>,
    width: usize,
    /// Where it lies in the vector.
    b: Range<usize>,
}

impl Bias {
    /// Those there are.
    pub fn new(spec: &ModelSpec, at: &mut Layout<'_>) -> Self {
        let mut out = Vec::new();
        let h = spec.hidden;
        let norms = [(Point::AttnNorm, Place::AttnNorm), (Point::FfnNorm, Place::FfnNorm)];
        let mut places: Vec<_> = norms.map(|(point, place)| (point, place, 0..h, h)).into();
        for group in Group::ALL {
            let width = group.columns(spec).map(|c| c.1.end).max().unwrap_or(0);
            places.extend(group.columns(spec).map(|(place, columns)| (Point::after(group), place, columns, width)));
        }
        for (point, place, columns, width) in places {
            if let Some((b, _)) = at.take(place, bias::B) {
                out.push(Piece { point, columns, width, b });
            }
        }
        Self(out)
    }
}

impl Act for Bias {
    fn acts(&self, point: Point) -> bool {
        self.0.iter().any(|p| p.point == point)
    }

    fn forward(&self, at: &At<'_>, _x: View<'_>, y: &mut [f32]) -> Vec<f32> {
        for p in self.0.iter().filter(|p| p.point == at.point) {
            let b = &at.vector[p.b.clone()];
            y.chunks_exact_mut(p.width).for_each(|y| at.kernels.add(&mut y[p.columns.clone()], b));
        }
        Vec::new()
    }

    fn backward(
        &self,
        at: &At<'_>,
        _x: View<'_>,
        _kept: &[f32],
        dy: &mut [f32],
        grad: &mut [f32],
        _dx: Option<&mut [f32]>,
    ) {
        for p in self.0.iter().filter(|p| p.point == at.point) {
            let grad = &mut grad[p.b.clone()];
            dy.chunks_exact(p.width).for_each(|dy| at.kernels.add(grad, &dy[p.columns.clone()]));
        }
    }
}
