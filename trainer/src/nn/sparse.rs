//! A sparse delta at the linears of a layer (APET): `y += S x`; and what chooses its positions by
//! gradient, the empirical Fisher information `Σ_rows (∂loss/∂W)²`.
//!
//! Both work on states turned to `[features, tokens]`, where one position is one sum over
//! neighbouring numbers.

use super::matmul::{View, matmul};
use super::pet::{Act, At, Group, Layout, Point};
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Place, Site, sparse::NAMES};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// The deltas of a layer.
#[derive(Debug)]
pub struct Sparse(Vec<Piece>);

#[derive(Debug)]
struct Piece {
    point: Point,
    /// Inputs, and the outputs of the whole group.
    shape: [usize; 2],
    /// The linear's first column of the group's output.
    first: usize,
    index: Arc<Vec<i32>>,
    /// Where the values lie in the vector.
    values: Range<usize>,
}

impl Piece {
    /// (row of the group's output, column) and place in the vector of each position.
    fn positions(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let input = self.shape[0];
        let place = move |at: &i32| (self.first + *at as usize / input, *at as usize % input);
        self.index.iter().map(place).zip(self.values.clone()).map(|((row, col), v)| (row, col, v))
    }
}

/// `[n, width]` to `[width, n]`.
fn turned(x: &[f32], width: usize) -> Vec<f32> {
    let n = x.len() / width;
    let mut out = vec![0.0; x.len()];
    for (t, row) in x.chunks_exact(width).enumerate() {
        row.iter().enumerate().for_each(|(i, v)| out[i * n + t] = *v);
    }
    out
}

/// Adds `[width, n]` to `[n, width]`.
fn add_turned(x: &[f32], width: usize, out: &mut [f32]) {
    let n = x.len() / width;
    for (t, row) in out.chunks_exact_mut(width).enumerate() {
        row.iter_mut().enumerate().for_each(|(i, v)| *v += x[i * n + t]);
    }
}

impl Sparse {
    /// Those there are; `indices` by full tensor name.
    pub fn new(spec: &ModelSpec, indices: &BTreeMap<String, Arc<Vec<i32>>>, at: &mut Layout<'_>) -> Self {
        let mut out = Vec::new();
        for group in Group::ALL {
            let width = group.columns(spec).map(|c| c.1.end).max().unwrap_or(0);
            for (place, columns) in group.columns(spec) {
                let name = format!("{}.{}", at.site(place), NAMES[0]);
                let Some((index, (values, _))) = indices.get(&name).cloned().zip(at.take(place, NAMES[1])) else {
                    continue;
                };
                let shape = [place.shape(spec).1, width];
                out.push(Piece { point: Point::after(group), shape, first: columns.start, index, values });
            }
        }
        Self(out)
    }

    fn at(&self, point: Point) -> impl Iterator<Item = &Piece> {
        self.0.iter().filter(move |p| p.point == point)
    }
}

impl Act for Sparse {
    fn acts(&self, point: Point) -> bool {
        self.at(point).next().is_some()
    }

    fn forward(&self, at: &At<'_>, x: View<'_>, y: &mut [f32]) -> Vec<f32> {
        let (n, Some([input, width])) = (x.height(), self.at(at.point).next().map(|p| p.shape)) else {
            return Vec::new();
        };
        let (x, mut sum) = (turned(x.numbers(), input), vec![0.0; y.len()]);
        for (row, col, v) in self.at(at.point).flat_map(Piece::positions) {
            at.kernels.axpy_f32(&mut sum[row * n..(row + 1) * n], at.vector[v], &x[col * n..(col + 1) * n]);
        }
        add_turned(&sum, width, y);
        Vec::new()
    }

    fn backward(
        &self,
        at: &At<'_>,
        x: View<'_>,
        _kept: &[f32],
        dy: &mut [f32],
        grad: &mut [f32],
        dx: Option<&mut [f32]>,
    ) {
        let (n, Some([input, width])) = (x.height(), self.at(at.point).next().map(|p| p.shape)) else { return };
        let (x, dy) = (turned(x.numbers(), input), turned(dy, width));
        for (row, col, v) in self.at(at.point).flat_map(Piece::positions) {
            grad[v] += at.kernels.dot_f32(&dy[row * n..(row + 1) * n], &x[col * n..(col + 1) * n]);
        }
        if let Some(dx) = dx {
            let mut sum = vec![0.0; n * input];
            for (row, col, v) in self.at(at.point).flat_map(Piece::positions) {
                at.kernels.axpy_f32(&mut sum[col * n..(col + 1) * n], at.vector[v], &dy[row * n..(row + 1) * n]);
            }
            add_turned(&sum, input, dx);
        }
    }
}

/// Sums of squared gradients of whole weights `[out, in]`, over backward passes of one row each.
#[derive(Debug, Default)]
pub struct Probe {
    /// By site.
    pub sums: Mutex<BTreeMap<Site, Vec<f32>>>,
}

/// What follows a site's name in the name of the number that lets a layer have a gradient.
pub const PROBE: &str = "probe";

impl Probe {
    /// The probe of a layer that has a number named [`PROBE`] at its first linear.
    pub(super) fn layer(self: &Arc<Self>, spec: &ModelSpec, at: &mut Layout<'_>) -> ProbeLayer {
        let here = at.take(Place::Q, PROBE).is_some();
        ProbeLayer { probe: self.clone(), groups: here.then(|| Group::ALL.map(|g| g.columns(spec).collect())) }
    }
}

/// Listens at every linear of a layer, and changes nothing.
#[derive(Debug)]
pub(super) struct ProbeLayer {
    probe: Arc<Probe>,
    groups: Option<[Vec<(Place, Range<usize>)>; 4]>,
}

impl Act for ProbeLayer {
    fn acts(&self, point: Point) -> bool {
        self.groups.is_some() && point.group().is_some()
    }

    fn forward(&self, _at: &At<'_>, _x: View<'_>, _y: &mut [f32]) -> Vec<f32> {
        Vec::new()
    }

    fn backward(
        &self,
        at: &At<'_>,
        x: View<'_>,
        _kept: &[f32],
        dy: &mut [f32],
        _grad: &mut [f32],
        _dx: Option<&mut [f32]>,
    ) {
        let (Some(groups), Some(group)) = (&self.groups, at.point.group()) else { return };
        let columns = &groups[group as usize];
        let dy = View::new(dy, columns.iter().map(|c| c.1.end).max().unwrap_or(1));
        let mut sums = self.probe.sums.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, columns) in columns {
            let Some(sum) = sums.get_mut(&Site { layer: at.layer, place: *place }) else { continue };
            let gradient = matmul(dy.columns(columns.clone()).t(), x, at.threads);
            sum.iter_mut().zip(&gradient).for_each(|(s, g)| *s += g * g);
        }
    }
}
