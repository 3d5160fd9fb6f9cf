//! Dynamic ConPET (Song et al. 2023): a module and a head for each task, and a selector.
//!
//! Each module is trained on its own task's rows with full batches: with one routed module and
//! teacher forcing the published mixture gives old rows no gradient, so this is the same optimum
//! for half the work. The selector is closed-form by default; `--selector conpet` trains the
//! published one ([`crate::selectors`] has them all).

use super::per_task;
use crate::run::{Run, Stage};
use crate::selectors::{self, New};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::bundle::manifest::TaskKind;

/// One more task.
pub fn learn(run: &mut Run<'_>, stage: Stage) -> Result<Option<Draft>> {
    let (t, mut draft) = (stage.task, stage.draft);
    let Some(data) = per_task::module(run, &mut draft, t)? else { return Ok(None) };
    let valid = run.prepare_valid(t)?;
    let selector = selectors::by_name(&run.config.selector)?;
    let new = New { task: t, train: &data, valid: &valid };
    if !(selector.fit)(run, &mut draft, &new)? {
        return Ok(None);
    }
    if run.tasks[t].kind == TaskKind::Classification {
        run.calibrate_head(&mut draft, &valid)?;
    }
    Ok(Some(draft))
}
