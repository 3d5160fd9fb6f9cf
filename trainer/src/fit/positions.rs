//! The positions of a sparse delta: those of the module that a job continues, or those chosen by its spec's
//! rule, which may need gradients of the frozen weights.

use super::batches::Batches;
use super::frame::{Frame, parameters};
use super::job::{Job, Outcome, Target, failed};
use super::pass::{Parts, shard};
use super::recipe::{Buffers, Plain};
use super::steps::train;
use crate::pet::probe::{PROBE, Probe};
use crate::pet::{self, Indices};
use candle_core::{DType, Device, Var};
use conpet_formats::Result;
use conpet_formats::pet::{Place, Site};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A job's sites and positions, taken from the module it starts from or chosen by the spec's rule.
///
/// # Errors
/// If a site is not in the base, or the positions cannot be chosen.
pub(super) fn frame(job: &Job<'_>) -> Result<Frame> {
    let sites = job.sites.iter().map(|s| Site::parse(&job.decoder.spec, s)).collect::<Result<Vec<_>>>()?;
    let indices = match job.start.filter(|s| !s.indices.is_empty()) {
        Some(start) => start.indices.clone(),
        None => pet::choose(&job.decoder.base, job.pet, &sites, (job.seed, job.name), &|sites, probe| {
            fisher_of_base(job, sites, probe)
        })?,
    };
    Ok(Frame { sites, indices })
}

/// Number of rows that the Fisher information of frozen weights is estimated on.
const BASE_ROWS: usize = 64;

/// The empirical Fisher information of frozen weights, `Σ (∂loss/∂W)²` over some rows of the job with their own
/// answers (as Sung et al. 2021 choose their mask), for every weight that `probe` sums.
///
/// A head that starts at zero sends no gradient into the base, so a head of the job's shape is first trained
/// alone, for at most 50 steps and without the job's recipe.
///
/// # Errors
/// If a row cannot be run.
fn fisher_of_base(job: &Job<'_>, sites: &[Site], probe: &Arc<Probe>) -> Result<()> {
    let wrong = |e: candle_core::Error| failed(job.name, 0, &e);
    let few = FirstSteps(job.batches, 50);
    // Never stopped halfway: it would choose other positions than an uninterrupted run.
    let never = AtomicBool::new(false);
    let head = job.head.map(|(feature, n)| (feature, if n > 0 { n } else { classes(job) }));
    let bare = Job { sites: &[], head, recipe: &Plain, start: None, checkpoint: None, stop: &never, ..job.clone() };
    // Without sites there is nothing to choose.
    let nowhere = || Frame { sites: Vec::new(), indices: Indices::new() };
    let start = match (head, train(&Job { batches: &few, ..bare.clone() }, nowhere(), &mut |_| {})?) {
        (None, _) | (_, Outcome::Stopped) => None,
        (Some(_), Outcome::Done(t)) => Some(t),
    };
    let job = &Job { start: start.as_ref(), ..bare };
    let (frame, none) = (nowhere(), Buffers::new());
    let params = parameters(job, &frame).map_err(wrong)?.params;
    let mut parts = Parts::new(job, &frame, &params, &none, 0).map_err(wrong)?;
    parts.probe = Some(probe.clone());
    for layer in sites.iter().map(|s| s.layer).collect::<BTreeSet<_>>() {
        let zero = Var::zeros(1, DType::F32, &Device::Cpu).map_err(wrong)?;
        parts.vars.insert(format!("{}.{PROBE}", Site { layer, place: Place::Q }), zero);
    }
    let rows = job.examples.len();
    for i in (0..rows).step_by(rows.div_ceil(BASE_ROWS)) {
        shard(job, &[i], 1.0, (0, 1), &parts).map_err(wrong)?;
    }
    Ok(())
}

/// Number of classes among the job's rows.
fn classes(job: &Job<'_>) -> usize {
    let class = |i| match job.examples.target(i) {
        Target::Class(c) => c as usize + 1,
        Target::Completion(_) => 0,
    };
    (0..job.examples.len()).map(class).max().unwrap_or(0)
}

/// The first steps of some batches.
struct FirstSteps<'a>(&'a dyn Batches, u64);

impl Batches for FirstSteps<'_> {
    fn steps(&self) -> u64 {
        self.0.steps().min(self.1)
    }
    fn rows(&self, step: u64) -> Vec<usize> {
        self.0.rows(step)
    }
}
