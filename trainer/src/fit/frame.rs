//! A job's module before its first step: where it acts, and its parameters.

use super::job::Job;
use super::recipe::{HEAD_BIAS, HEAD_WEIGHT};
use crate::optim::{AdamW, Param};
use crate::pet::{self, Indices};
use candle_core::{Device, Tensor, Var};
use conpet_formats::pet::Site;
use std::collections::BTreeMap;

/// Where a module acts, and the part of it that is not trained.
#[derive(Debug)]
pub(super) struct Frame {
    /// Sites of the job.
    pub(super) sites: Vec<Site>,
    /// Positions of a sparse delta.
    pub(super) indices: Indices,
}

impl Frame {
    /// The module's tensors, made from the parameters, by name and in the shapes of the spec: see
    /// [`pet::in_force`].
    pub(super) fn module(
        &self,
        job: &Job<'_>,
        params: &BTreeMap<String, Param>,
    ) -> candle_core::Result<BTreeMap<String, Tensor>> {
        let values = params.iter().map(|(n, p)| (n.clone(), p.var.as_tensor().clone())).collect();
        pet::in_force(job.pet, &job.decoder.spec, &self.sites, values)
    }
}

/// The initial parameters: each kind's own start ([`pet::fresh`]), zero for the head, the recipe's for its own.
/// Where the job continues from earlier values, these fill the first rows and columns of tensors that have
/// grown.
pub(super) fn parameters(job: &Job<'_>, frame: &Frame) -> candle_core::Result<AdamW> {
    let mut optim = AdamW::new(job.hyper.adamw);
    let known = |name: &str| job.start.and_then(|s| s.tensors.get(name));
    let mut add = |name: String, shape: &[usize], mut values: Vec<f32>, lr: f32| -> candle_core::Result<()> {
        if let Some((old_shape, old)) = known(&name) {
            let width = |s: &[usize]| s[1..].iter().product::<usize>();
            let (old_width, width) = (width(old_shape), width(shape));
            let n = old_width.min(width);
            for (new, old) in values.chunks_exact_mut(width).zip(old.chunks_exact(old_width)) {
                new[..n].copy_from_slice(&old[..n]);
            }
        }
        optim.add(name, Var::from_tensor(&Tensor::from_vec(values, shape, &Device::Cpu)?)?, lr);
        Ok(())
    };
    let (base, named) = (&job.decoder.base, (job.seed, job.name));
    for x in pet::fresh(base, job.pet, &frame.sites, &frame.indices, named, |n| known(n).is_some()) {
        add(x.name, &x.shape, x.values, 1.0)?;
    }
    if let Some((feature, classes)) = job.head.filter(|(_, n)| *n > 0) {
        let dim = feature.dim(job.decoder.spec.hidden);
        add(HEAD_WEIGHT.into(), &[classes, dim], vec![0.0; classes * dim], job.hyper.head_lr)?;
        add(HEAD_BIAS.into(), &[classes], vec![0.0; classes], job.hyper.head_lr)?;
    }
    for x in job.recipe.parameters() {
        add(x.name, &x.shape, x.start, x.lr)?;
    }
    Ok(optim)
}
