//! Biases in force.

use super::payload::{Factor, Payload};
use super::{Act, At, Point, Table, tokens};
use crate::error::Result;
use conpet_formats::pet::{Part, Site, bias};

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
    fn work(&self) -> usize {
        self.widest
    }

    fn act(&self, at: &At<'_>, point: Point, _x: &[f32], y: &mut [f32], work: &mut [f32]) {
        let Point::Out(place) = point else { return };
        let Some(b) = self.sites.get(at.layer, place) else { return };
        let b = at.numbers(b, work);
        tokens(at.threads, y, b.len(), |_, y| at.kernels.add(y, b));
    }
}
