//! (IA)³ in force: `y += w · l ⊙ y`, where `l` is the stored difference from one.

use super::act::{Act, At, Table};
use super::payload::{Factor, Payload};
use crate::error::Result;
use conpet_formats::pet::{Part, Place, Site, ia3};

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
    fn has(&self, layer: usize, place: Place) -> bool {
        self.sites.get(layer, place).is_some()
    }

    fn reads_flow(&self) -> bool {
        true
    }

    fn work(&self) -> usize {
        self.widest
    }

    fn act(&self, at: &At<'_>, place: Place, _x: &[f32], y: &mut [f32], work: &mut [f32]) {
        let Some(l) = self.sites.get(at.layer, place) else { return };
        let l = at.vector(l, work);
        at.cpu.by_row(y, l.len(), |t, y| {
            let w = at.weight.of(t);
            match at.before {
                None => y.iter_mut().zip(l).for_each(|(y, l)| *y *= 1.0 + w * l),
                Some(all) => {
                    let before = &all[t * l.len()..(t + 1) * l.len()];
                    y.iter_mut().zip(l.iter().zip(before)).for_each(|(y, (l, b))| *y += w * l * b);
                }
            }
        });
    }
}
