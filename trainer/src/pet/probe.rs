//! The scores of the Fisher rule: the empirical Fisher information of frozen weights, `Σ_rows (∂loss/∂W)²`.

use crate::nn::matmul::{View, matmul};
use crate::pet::act::{Act, At};
use crate::pet::group::Group;
use crate::pet::plan::Layout;
use crate::pet::point::Point;
use conpet_formats::pet::{Place, Site};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// Sums of squared gradients of whole weights `[out, in]`, over backward passes of one row each.
#[derive(Debug, Default)]
pub struct Probe {
    /// The sums, by site.
    pub sums: Mutex<BTreeMap<Site, Vec<f32>>>,
}

/// Suffix, after a site's name, of the parameter that makes a layer compute gradients.
pub const PROBE: &str = "probe";

impl Probe {
    /// The probe of a layer that has a parameter named [`PROBE`] at its first linear.
    pub(in crate::pet) fn layer(self: &Arc<Self>, at: &mut Layout<'_>) -> ProbeLayer {
        let here = at.take(Place::Q, PROBE).is_some();
        ProbeLayer { probe: self.clone(), groups: here.then(|| Group::ALL.map(|g| g.columns(at.spec).collect())) }
    }
}

/// Records gradients at every linear of a layer, and changes nothing.
#[derive(Debug)]
pub(in crate::pet) struct ProbeLayer {
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
