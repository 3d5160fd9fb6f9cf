//! Adapters in force: two small products and a nonlinearity, for all tokens of a batch at once.

use super::act::{Act, At, Table};
use super::payload::{Factor, Payload};
use crate::error::Result;
use conpet_formats::pet::adapter::{Form, NAMES};
use conpet_formats::pet::{Adapter as Spec, Part, Place, Site};

#[derive(Debug)]
pub(super) struct Adapter {
    spec: Spec,
    hidden: usize,
    /// `D`, `b`, `U`, `c`.
    sites: Table<[Factor; 4]>,
}

impl Adapter {
    pub(super) fn load(p: &mut Payload<'_>, (part, spec): (&Part, Spec), sites: &[Site]) -> Result<Self> {
        let mut table = Table::new(p.spec.n_layer);
        for site in sites.iter().filter(|s| part.acts(p.spec.n_layer, **s)) {
            let shapes = part.tensors(p.spec, site.place);
            let mut factor = |i: usize| p.factor(*site, NAMES[i], &shapes[i].1);
            table.set(*site, [factor(0)?, factor(1)?, factor(2)?, factor(3)?]);
        }
        Ok(Self { spec, hidden: p.spec.hidden, sites: table })
    }
}

impl Act for Adapter {
    fn has(&self, layer: usize, place: Place) -> bool {
        self.sites.get(layer, place).is_some()
    }

    fn reads_flow(&self) -> bool {
        self.spec.form != Form::Parallel
    }

    fn work(&self) -> usize {
        self.spec.width + self.hidden + self.hidden.max(self.spec.width)
    }

    fn act(&self, at: &At<'_>, place: Place, x: &[f32], y: &mut [f32], work: &mut [f32]) {
        let Some([d, b, up, c]) = self.sites.get(at.layer, place) else { return };
        let (h, width) = (self.hidden, self.spec.width);
        let n = y.len() / h;
        let (low, work) = work.split_at_mut(n * width);
        let (sum, work) = work.split_at_mut(n * h);
        let read = if self.reads_flow() { at.before.unwrap_or(y) } else { x };
        at.cpu.matmul(d.matrix(at.map), read, low, n);
        let b = at.vector(b, work);
        at.cpu.by_row(low, width, |_, low| {
            low.iter_mut().zip(b).for_each(|(v, b)| *v = self.spec.act.value(*v + b));
        });
        at.cpu.matmul(up.matrix(at.map), low, sum, n);
        let c = at.vector(c, work);
        at.cpu.by_row(y, h, |t, y| {
            let w = at.weight.of(t);
            at.kernels().axpy_f32(y, w, &sum[t * h..(t + 1) * h]);
            at.kernels().axpy_f32(y, w, c);
        });
    }
}
