//! A module and a head for each task, and nothing that chooses: the task is named when asking. What
//! the modules can do if routing were perfect.

use crate::data::Prepared;
use crate::fit::Outcome;
use crate::run::{Lesson, Run, Stage};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::selector::SelectorKind;

/// One more task's module and head, on its own rows alone.
pub fn learn(run: &mut Run<'_>, stage: Stage) -> Result<Option<Draft>> {
    let mut draft = stage.draft;
    draft.manifest.selector.kind = SelectorKind::Task;
    Ok(module(run, &mut draft, stage.task)?.map(|_| draft))
}

/// Trains the module and the head of a task and enters all three; gives the rows it was trained on,
/// `None` if stopped.
pub(super) fn module(run: &mut Run<'_>, draft: &mut Draft, t: usize) -> Result<Option<Prepared>> {
    let task = run.tasks[t].clone();
    let head = run.trained_head(task.labels.len());
    let data = run.prepare_train(t)?;
    let lesson = Lesson::new(&task.name, &data, head.as_ref().map(|(f, n)| (f, *n)));
    let Outcome::Done(trained) = run.fit(&lesson)? else { return Ok(None) };
    let module = run.add_module(draft, &trained, &run.sites, &task.digest)?;
    let classifies = task.kind == TaskKind::Classification;
    let head = classifies.then(|| run.add_head(draft, &trained, vec![t as u32], None)).transpose()?;
    run.add_task(draft, t, Some(module), head);
    run.account(&trained);
    Ok(Some(data))
}
