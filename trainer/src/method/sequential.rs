//! One module and one head for everything, trained on each task in turn without protection against forgetting:
//! the lower bound.

use super::shared::Shared;
use crate::fit::Plain;
use crate::services::{Services, Stage};
pub use crate::settings::NoSettings as Settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;

/// Continues training the shared module on the next task; its head grows by the new labels.
pub fn learn(services: &mut Services<'_>, _: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let s = Shared::begin(services, stage.task)?;
    let Some(trained) = s.fit(services, &Plain)? else { return Ok(None) };
    s.finish(services, stage.draft, &trained).map(Some)
}
