//! Biases in force: `y += w · b`.

use super::act::{Act, At, Table};
use super::payload::{Factor, Payload};
use crate::error::Result;
use conpet_formats::pet::{Part, Place, Site, bias};

#[derive(Debug)]
pub(super) struct Bias {
    sites: Table<Factor>,
    widest: usize,
}

impl Bias {
    pub(super) fn load(p: &mut Payload<'_>, part: &Part, sites: &[Site]) -> Result<Self> {
        let mut out = Self { sites: Table::new(p.spec.n_layer), widest: 0 };
        for site in sites.iter().filter(|s| part.acts(p.spec.n_layer, **s)) {
            let (width, _) = site.place.shape(p.spec);
            out.sites.set(*site, p.factor(*site, bias::B, &[width])?);
            out.widest = out.widest.max(width);
        }
        Ok(out)
    }
}

impl Act for Bias {
    fn has(&self, layer: usize, place: Place) -> bool {
        self.sites.get(layer, place).is_some()
    }

    fn work(&self) -> usize {
        self.widest
    }

    fn act(&self, at: &At<'_>, place: Place, _x: &[f32], y: &mut [f32], work: &mut [f32]) {
        let Some(b) = self.sites.get(at.layer, place) else { return };
        let b = at.vector(b, work);
        at.cpu.by_row(y, b.len(), |t, y| at.kernels().axpy_f32(y, at.weight.of(t), b));
    }
}
