//! One module and one head for everything, trained on each task in turn with no protection: the floor.

use crate::fit::Outcome;
use crate::run::{Run, Stage};
use conpet_formats::bundle::Draft;
use conpet_formats::selector::SelectorKind;
use conpet_formats::{Code, Error, Result};

/// Goes on training the one module on the next task; its head grows by the new labels.
pub fn learn(run: &mut Run<'_>, stage: Stage) -> Result<Option<Draft>> {
    let t = stage.task;
    let task = &run.tasks[t];
    if task.labels.is_empty() != run.tasks[0].labels.is_empty() {
        return Err(Error::new(Code::Unsupported, format!("task {} is of another kind than the first", task.name))
            .hint("one shared module learns classification or generation, not both; use --method dynamic"));
    }
    let before: usize = run.tasks[..t].iter().map(|x| x.labels.len()).sum();
    let classes = before + task.labels.len();
    let mut data = run.prepare_train(t)?;
    data.shift_classes(before);
    let head_section = run.bundle.as_ref().and_then(|b| b.manifest().heads.first()).map(|h| h.section);
    let start = head_section.and_then(|h| run.stored(0, h));
    let feature = run.head_feature.clone();
    let head = (classes > 0).then_some((&feature, classes));
    let Outcome::Done(trained) = run.fit(&task.name, &data, head, None, start.as_ref())? else { return Ok(None) };
    let mut draft = stage.draft;
    let tasks: Vec<u32> = (0..=t as u32).collect();
    let module = if t == 0 {
        run.add_module(&mut draft, &trained, &run.sites, &task.digest)?
    } else {
        run.replace_module(&mut draft, 0, &trained, &task.digest)?
    };
    let old = (t > 0).then_some(0);
    let head = if classes > 0 { Some(run.add_head(&mut draft, &trained, tasks, old)?) } else { None };
    run.add_task(&mut draft, t, Some(module), head);
    draft.manifest.selector.kind = SelectorKind::Single;
    run.account(&trained);
    Ok(Some(draft))
}
