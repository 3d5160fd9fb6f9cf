//! Learned keys and values in training, and the MLP that they may be trained through (Li & Liang 2021,
//! section 4.3): its weights are trained, its output is kept.

use super::kind::{Beginning, Fresh, Trainable};
use super::plan::{Layout, Plan};
use crate::rng::Stream;
use candle_core::Tensor;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::prefix::{PAIRS, Prefix};
use conpet_formats::pet::{Place, Site};
use conpet_runtime::base::Base;
use std::collections::BTreeMap;

/// Parameters of the MLP: `P = W₂ tanh(W₁ e + b₁) + b₂` for each row e.
const MLP: [&str; 5] = ["prefix.rows", "prefix.w1", "prefix.b1", "prefix.w2", "prefix.b2"];

impl Trainable for Prefix {
    /// Uniform in ±0.5.
    fn start(&self, _base: &Base, _name: &str, shape: &[usize], mut rng: Stream) -> Vec<f32> {
        rng.symmetric(shape.iter().product(), 0.5)
    }

    /// The MLP's parameters, unless training continues from learned pairs.
    fn through(&self, beginning: &Beginning<'_>) -> Option<Vec<Fresh>> {
        let (sites, spec) = (beginning.sites, &beginning.base.spec);
        let known = sites.iter().all(|s| (beginning.known)(&format!("{s}.{PAIRS}")));
        (self.mid > 0 && !known).then(|| mlp(*self, sites.len() * spec.kv_dim(), beginning.stream("prefix")))
    }

    fn make(
        &self,
        spec: &ModelSpec,
        sites: &[Site],
        tensors: &mut BTreeMap<String, Tensor>,
    ) -> candle_core::Result<()> {
        let [Some(rows), Some(w1), Some(b1), Some(w2), Some(b2)] = MLP.map(|n| tensors.remove(n)) else {
            return Ok(());
        };
        let mid = rows.matmul(&w1.t()?)?.broadcast_add(&b1)?.tanh()?;
        let all = mid.matmul(&w2.t()?)?.broadcast_add(&b2)?;
        let width = spec.kv_dim();
        for (i, site) in sites.iter().enumerate() {
            tensors.insert(format!("{site}.{PAIRS}"), all.narrow(1, i * width, width)?.contiguous()?);
        }
        Ok(())
    }

    /// Enters the learned keys and values, which attention reads.
    fn enter(&self, plan: &mut Plan, layout: &mut Layout<'_>) {
        let mut pairs = |place| layout.take(place, PAIRS).map(|x| x.0);
        plan.learned = pairs(Place::K).zip(pairs(Place::V)).map(|(k, v)| [k, v]);
    }
}

fn mlp(p: Prefix, out: usize, mut rng: Stream) -> Vec<Fresh> {
    let shapes = [vec![p.pairs, p.mid], vec![p.mid, p.mid], vec![p.mid], vec![out, p.mid], vec![out]];
    let bounds = [1.0, 1.0 / (p.mid as f32).sqrt(), 0.0, 1.0 / (p.mid as f32).sqrt(), 0.0];
    let each = MLP.into_iter().zip(shapes).zip(bounds);
    each.map(|((name, shape), bound)| Fresh {
        values: rng.symmetric(shape.iter().product(), bound),
        name: name.into(),
        shape,
    })
    .collect()
}
