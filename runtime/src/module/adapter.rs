//! Adapters in force: two small products and a nonlinearity, for all tokens of a batch at once.

use super::payload::{Factor, Payload};
use super::{Act, At, Point, Table, tokens};
use crate::error::Result;
use conpet_formats::pet::adapter::{Form, NAMES};
use conpet_formats::pet::{Adapter as Spec, Part, Place, Places, Site};

#[derive(Debug)]
pub(super) struct Adapter {
    spec: Spec,
    hidden: usize,
    /// `D`, `b`, `U`, `c`.
    sites: Table<[Factor; 4]>,
    at: Places,
}

impl Adapter {
    pub(super) fn load(p: &mut Payload<'_>, (part, spec): (&Part, Spec), sites: &[Site]) -> Result<Self> {
        let mut table = Table::new(p.spec.n_layer);
        for site in sites.iter().filter(|s| part.acts(p.spec.n_layer, **s)) {
            let shapes = part.tensors(p.spec, site.place);
            let mut factor = |i: usize| p.factor(*site, NAMES[i], &shapes[i].1);
            table.set(*site, [factor(0)?, factor(1)?, factor(2)?, factor(3)?]);
        }
        Ok(Self { spec, hidden: p.spec.hidden, sites: table, at: part.at })
    }
}

impl Act for Adapter {
    fn work(&self) -> usize {
        self.spec.width + self.hidden + self.hidden.max(self.spec.width)
    }

    fn aside(&self) -> Places {
        if self.spec.form == Form::Parallel { self.at } else { Places::default() }
    }

    fn act(&self, at: &At<'_>, point: Point, x: &[f32], y: &mut [f32], work: &mut [f32]) {
        let place = match (self.spec.form, point) {
            (Form::Houlsby, Point::Add(place)) | (Form::Parallel, Point::Aside(place)) => place,
            (Form::Pfeiffer, Point::Layer) => Place::Down,
            _ => return,
        };
        let Some([d, b, up, c]) = self.sites.get(at.layer, place) else { return };
        let (h, width) = (self.hidden, self.spec.width);
        let n = y.len() / h;
        let (low, work) = work.split_at_mut(n * width);
        let (sum, work) = work.split_at_mut(n * h);
        at.kernels.matmul(at.threads, d.matrix(at.map), if self.spec.form == Form::Parallel { x } else { y }, low, n);
        let b = at.numbers(b, work);
        tokens(at.threads, low, width, |_, low| {
            low.iter_mut().zip(b).for_each(|(v, b)| *v = self.spec.act.value(*v + b));
        });
        at.kernels.matmul(at.threads, up.matrix(at.map), low, sum, n);
        let c = at.numbers(c, work);
        tokens(at.threads, y, h, |t, y| {
            at.kernels.add(y, &sum[t * h..(t + 1) * h]);
            at.kernels.add(y, c);
        });
    }
}
