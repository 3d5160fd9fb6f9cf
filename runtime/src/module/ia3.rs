//! (IA)³ in force.

use super::payload::{Factor, Payload};
use super::{Act, At, Point, Table, tokens};
use crate::error::Result;
use conpet_formats::pet::{Part, Site, ia3};

#[derive(Debug)]
pub(super) struct Ia3 {
    sites: Table<Factor>,
    widest: usize,
}

impl Ia3 {
    pub(super) fn load(p: &mut Payload<'_>, part: &Part, sites: &[Site]) -> Result<Self> {
        let mut out = Self { sites: Table::new(p.spec.n_layer), widest: 0 };
        for site in sites.iter().filter(|s| part.acts(p.spec.n_layer, **s)) {
            let shape = &part.tensors(p.spec, site.place)[0].1;
            out.sites.set(*site, p.factor(*site, ia3::L, shape)?);
            out.widest = out.widest.max(shape[0]);
        }
        Ok(out)
    }
}

impl Act for Ia3 {
    fn work(&self) -> usize {
        self.widest
    }

    fn act(&self, at: &At<'_>, point: Point, _x: &[f32], y: &mut [f32], work: &mut [f32]) {
        let place = match point {
            Point::In(p) if ia3::scales_input(p) => p,
            Point::Out(p) if !ia3::scales_input(p) => p,
            _ => return,
        };
        let Some(l) = self.sites.get(at.layer, place) else { return };
        let l = at.numbers(l, work);
        tokens(at.threads, y, l.len(), |_, y| y.iter_mut().zip(l).for_each(|(y, l)| *y *= 1.0 + l));
    }
}
