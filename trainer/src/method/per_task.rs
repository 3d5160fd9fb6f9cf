//! A module and a head for each task, without a selector: the caller names the task. Shows what the modules
//! could do with perfect routing.

use crate::data::Prepared;
use crate::fit::Outcome;
use crate::services::{Lesson, Services, Stage};
pub use crate::settings::NoSettings as Settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::selector::SelectorKind;

/// Trains one more task's module and head, on its own rows only.
pub fn learn(services: &mut Services<'_>, _: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let mut draft = stage.draft;
    draft.manifest.selector.kind = SelectorKind::Task;
    Ok(module(services, &mut draft, stage.task)?.map(|_| draft))
}

/// Trains the module and the head of a task and adds all three to the draft; returns the training rows, or
/// `None` if stopped.
pub(super) fn module(services: &mut Services<'_>, draft: &mut Draft, t: usize) -> Result<Option<Prepared>> {
    let task = services.tasks()[t].clone();
    let head = services.trained_head(task.labels.len());
    let data = services.prepare_train(t)?;
    let lesson = Lesson::new(&task.name, &data, head.as_ref().map(|(f, n)| (f, *n)));
    let Outcome::Done(trained) = services.fit(&lesson)? else { return Ok(None) };
    let module = services.add_module(draft, &trained, services.module(), &task.digest)?;
    let classifies = task.kind == TaskKind::Classification;
    let head = classifies.then(|| services.add_head(draft, &trained, vec![t as u32], None)).transpose()?;
    services.add_task(draft, t, Some(module), head);
    services.account(&trained);
    Ok(Some(data))
}
