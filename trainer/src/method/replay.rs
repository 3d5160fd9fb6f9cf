//! Replay: which rows of a task are remembered, and how they are mixed with new ones.
//!
//! Plain methods keep `m` rows of each class and train on the new task's rows and the whole memory (each of its
//! rows `--memory-repeat` times per pass, as published). Static ConPET draws a fixed number of batches, half
//! new and half old ([`Mixture`]), from all old rows or, with `--memory`, from a bounded memory as well.

use super::shared::Shared;
use crate::data::{Joined, Prepared};
use crate::fit::{Batches, Epochs, Mixture, Plain, Trained};
use crate::rng::Stream;
use crate::services::lesson::lens;
use crate::services::replay::choose::{Way, choose};
use crate::services::{Kept, Lesson, Services};
use crate::settings::automatic::Memory;
use conpet_formats::Result;
use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

/// Rows of each class that a method without a fixed budget keeps by default.
const OWN_MEMORY: usize = 20;

/// The old rows of a stage.
pub(super) struct Replay {
    old: Vec<(Arc<Prepared>, usize)>,
    /// Rows of each class to keep; `None` keeps all.
    room: Option<usize>,
    /// Whether the method has a fixed budget of steps.
    fixed: bool,
}

impl Replay {
    /// The remembered rows of the tasks before `s.t`; `fixed` says that the method has a fixed budget of steps.
    pub(super) fn new(services: &mut Services<'_>, s: &Shared, kept: &Kept, fixed: bool) -> Result<Self> {
        let room = match services.settings().replay.memory {
            Memory::Own => (!fixed).then_some(OWN_MEMORY),
            Memory::All => None,
            Memory::Rows(n) => Some(n),
        };
        let old = (0..s.t).map(|t| {
            let rows = kept.get(&memory_name(t)).map(|(_, v)| v.iter().map(|i| *i as usize).collect::<Vec<_>>());
            Ok((services.replay(t, rows.as_deref())?, services.first_class(t)))
        });
        Ok(Self { old: old.collect::<Result<_>>()?, room, fixed })
    }

    /// The old rows followed by the new ones, and the range of each task.
    pub(super) fn joined<'a>(&'a self, s: &'a Shared) -> (Joined<'a>, Vec<Range<usize>>) {
        let mut rows = Joined::default();
        let mut pools: Vec<_> = self.old.iter().map(|(set, first)| rows.add(set, *first)).collect();
        pools.push(rows.add(&s.data, s.before));
        (rows, pools)
    }

    /// Whether the stage draws from a mixture rather than passing over all rows: static methods do, from
    /// the second task on.
    pub(super) fn draws(&self) -> bool {
        self.fixed && !self.old.is_empty()
    }

    /// Which rows each step trains on.
    pub(super) fn batches(
        &self,
        services: &Services<'_>,
        name: &str,
        rows: &Joined<'_>,
        pools: &[Range<usize>],
    ) -> Box<dyn Batches> {
        let (all, c) = (services.settings(), &services.settings().training);
        if self.draws() {
            let (pools, name) = (pools.to_vec(), name.to_owned());
            return Box::new(Mixture { pools, batch: c.batch, steps: all.budget(), seed: c.seed, name });
        }
        let (new, old) = (pools[pools.len() - 1].clone(), &pools[..pools.len() - 1]);
        let again = old.iter().flat_map(|p| std::iter::repeat_n(p.clone(), all.replay.memory_repeat)).flatten();
        Box::new(Epochs::over(new.chain(again).collect(), &lens(rows), c.batch, c.epochs, c.seed, name))
    }

    /// Rows of the new task to remember, chosen by features under the module just trained; all rows if all are
    /// kept.
    pub(super) fn chosen(&self, services: &Services<'_>, s: &Shared, trained: &Trained) -> Result<Vec<usize>> {
        let all: Vec<usize> = (0..s.data.prompts.len()).collect();
        let Some(room) = self.room else { return Ok(all) };
        let how = services.settings().replay.select;
        let rows = s.rows();
        let dim = s.feature.dim(services.spec().hidden);
        let looks = how.looks() && s.head().is_some();
        let features = if looks {
            services.features(&Lesson { start: Some(trained), ..s.lesson(&rows, &Plain) }, &all)?
        } else {
            Vec::new()
        };
        let mut out = Vec::new();
        for class in s.data.classes.iter().collect::<BTreeSet<_>>() {
            let own: Vec<usize> = all.iter().copied().filter(|i| s.data.classes[*i] == *class).collect();
            let points: Vec<&[f32]> = own.iter().filter_map(|i| features.get(i * dim..(i + 1) * dim)).collect();
            let mut rng = Stream::new(services.settings().training.seed, &format!("{}/memory/{class}", s.name), 0);
            // Rows without a feature (generation, choice heads) can only be drawn at random.
            let how = if looks || how == Way::Reservoir { how } else { Way::Random };
            out.extend(choose(how, room, own.len(), &points, &mut rng).into_iter().map(|i| own[i]));
        }
        out.sort_unstable();
        Ok(out)
    }

    /// Adds the new task's `chosen` rows to the memory.
    pub(super) fn remember(&self, t: usize, chosen: &[usize], kept: &mut Kept) {
        if self.room.is_some() {
            kept.insert(memory_name(t), (vec![chosen.len()], chosen.iter().map(|i| *i as f32).collect()));
        }
    }
}

fn memory_name(t: usize) -> String {
    format!("memory.{t}")
}
