//! Dynamic ConPET (Song et al. 2023): a module and a head for each task, and a selector.
//!
//! Each module is trained on its own task's rows with full batches: because each row trains only its own task's
//! module, the old rows of the published mixture give no gradient, so this finds the same optimum for half the
//! work. The selector is closed-form by default; `--selector conpet` trains the published one
//! ([`crate::selectors`] has them all).

use super::per_task;
use crate::selectors;
pub use crate::selectors::Settings;
use crate::selectors::fitting::Fit;
use crate::services::module::Modules;
use crate::services::prepare::Split;
use crate::services::{Services, Stage};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::bundle::manifest::TaskKind;

/// Learns one more task.
pub fn learn(services: &mut Services<'_>, own: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let (t, mut draft) = (stage.task, stage.draft);
    let quick = services.settings().module.modules == Modules::None;
    let data = match quick {
        true => {
            services.add_task(&mut draft, t, None, None);
            Some(services.prepare_bare(t, Split::Train)?)
        }
        false => per_task::module(services, &mut draft, t)?,
    };
    let Some(data) = data else { return Ok(None) };
    let valid = services.prepare_valid(t)?;
    let selector = selectors::by_name(&own.common.selector)?;
    let new = Fit { kind: selector.kind, common: &own.common, task: t, train: &data, valid: &valid };
    if !(selector.fit)(services, own, &mut draft, &new)? {
        return Ok(None);
    }
    if services.tasks()[t].kind == TaskKind::Classification && !quick {
        services.calibrate_head(&mut draft, &valid)?;
    }
    Ok(Some(draft))
}
