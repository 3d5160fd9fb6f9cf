//! A module and a head for each task, without a selector: the caller names the task. Shows what the modules
//! could do with perfect routing.

use super::shared::done;
use crate::fit::{Examples, Trained};
use crate::services::{Lesson, Services, Stage};
pub use crate::settings::NoSettings as Settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::selector::SelectorKind;

/// Trains one more task's module and head, on its own rows only.
pub fn learn(services: &mut Services<'_>, _: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let (mut draft, t) = (stage.draft, stage.task);
    draft.manifest.selector.kind = SelectorKind::Task;
    let data = services.prepare_train(t)?;
    let Some(trained) = train(services, t, &data, &services.tasks()[t].name.clone())? else { return Ok(None) };
    services.add_task(&mut draft, t, None, None);
    enter(services, &mut draft, t, &trained)?;
    services.account(&trained);
    Ok(Some(draft))
}

/// Trains the module and the head of a task on these of its rows, under a name of its own; `None` if stopped.
pub(super) fn train(services: &Services<'_>, t: usize, rows: &dyn Examples, name: &str) -> Result<Option<Trained>> {
    let head = services.trained_head(services.tasks()[t].labels.len());
    let lesson = Lesson::new(name, rows, head.as_ref().map(|(f, n)| (f, *n)));
    done(services.fit(&lesson)?)
}

/// Gives the newest task of a draft its module and, if it has labels, its head.
pub(super) fn enter(services: &Services<'_>, draft: &mut Draft, t: usize, trained: &Trained) -> Result<()> {
    let task = &services.tasks()[t];
    let module = services.add_module(draft, trained, services.module(), &task.digest)?;
    let classifies = task.kind == TaskKind::Classification;
    let head = classifies.then(|| services.add_head(draft, trained, vec![t as u32], None)).transpose()?;
    if let Some(entry) = draft.manifest.tasks.last_mut() {
        (entry.module, entry.head) = (Some(module), head);
    }
    Ok(())
}
