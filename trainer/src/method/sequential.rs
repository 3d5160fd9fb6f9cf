//! One module and one head for everything, trained on each task in turn with no protection: the floor.

use super::shared::Shared;
use crate::fit::Plain;
use crate::run::{Run, Stage};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;

/// Goes on training the one module on the next task; its head grows by the new labels.
pub fn learn(run: &mut Run<'_>, stage: Stage) -> Result<Option<Draft>> {
    let s = Shared::begin(run, stage.task)?;
    let Some(trained) = s.fit(run, &Plain)? else { return Ok(None) };
    s.finish(run, stage.draft, &trained).map(Some)
}
