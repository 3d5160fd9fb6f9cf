//! Dynamic ConPET (Song et al. 2023): a module and a head for each task, and a selector.
//!
//! Each module is trained on its own task's rows with full batches: with one routed module and
//! teacher forcing the published mixture gives old rows no gradient, so this is the same optimum
//! for half the work. The selector is closed-form by default; `--selector conpet` trains the
//! published one ([`crate::selectors`] has them all).

use crate::fit::Outcome;
use crate::run::{Run, Stage};
use crate::selectors::{self, New};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::bundle::manifest::TaskKind;

/// One more task.
pub fn learn(run: &mut Run<'_>, stage: Stage) -> Result<Option<Draft>> {
    let t = stage.task;
    let task = &run.tasks[t];
    let classifies = task.kind == TaskKind::Classification;
    let data = run.prepare_train(t)?;
    let head = classifies.then(|| (run.head_feature.clone(), task.labels.len()));
    let outcome = run.fit(&task.name, &data, head.as_ref().map(|(f, n)| (f, *n)), None, None)?;
    let Outcome::Done(trained) = outcome else { return Ok(None) };
    let mut draft = stage.draft;
    let module = run.add_module(&mut draft, &trained, &run.sites, &task.digest)?;
    let head = if classifies { Some(run.add_head(&mut draft, &trained, vec![t as u32], None)?) } else { None };
    run.add_task(&mut draft, t, Some(module), head);
    run.account(&trained);
    let valid = run.prepare_valid(t)?;
    let selector = selectors::by_name(&run.config.selector)?;
    let new = New { task: t, train: &data, valid: &valid };
    if !(selector.fit)(run, &mut draft, &new)? {
        return Ok(None);
    }
    if classifies {
        run.calibrate_head(&mut draft, &valid)?;
    }
    Ok(Some(draft))
}
