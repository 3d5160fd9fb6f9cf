//! EMR, episodic memory replay (Wang et al. 2019, arXiv 1903.02588), and its static ConPET form.
//!
//! One module and one head are trained on the new task's rows and on remembered rows of the tasks before, with
//! cross-entropy over all labels so far. `emr` remembers `--memory` rows of each class (20) and passes over all
//! of them, so the cost grows with the number of tasks. `static-emr` takes a fixed number of steps for each
//! task after the first; half of each batch are new rows, half old ones drawn uniformly over tasks from all old
//! rows.

use super::replay::Replay;
use super::shared::Shared;
use crate::fit::Plain;
use crate::services::{Kept, Services, Stage};
pub use crate::settings::NoSettings as Settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;

/// Continues training the shared module on new and old rows.
pub fn learn(services: &mut Services<'_>, _: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let s = Shared::begin(services, stage.task)?;
    let mut kept = if s.t > 0 { services.kept(s.t - 1)? } else { Kept::new() };
    let replay = Replay::new(services, &s, &kept, stage.fixed)?;
    let (rows, pools) = replay.joined(&s);
    let batches = replay.batches(services, &s.name, &rows, &pools);
    let Some(trained) = s.fit_on(services, &rows, &*batches, &Plain)? else { return Ok(None) };
    replay.remember(s.t, &replay.chosen(services, &s, &trained)?, &mut kept);
    services.keep(s.t, &kept)?;
    s.finish(services, stage.draft, &trained).map(Some)
}
