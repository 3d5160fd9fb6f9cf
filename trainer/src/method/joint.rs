//! One module and one head on the rows of all tasks at once: the ceiling.

use super::shared::first_class;
use crate::data::Joined;
use crate::fit::Outcome;
use crate::run::{Lesson, Run, Stage};
use conpet_formats::bundle::Draft;
use conpet_formats::selector::SelectorKind;
use conpet_formats::{Code, Error, Result};

/// Learns the whole stream in one stage.
pub fn learn(run: &mut Run<'_>, stage: Stage) -> Result<Option<Draft>> {
    let kind = run.tasks[0].kind;
    if let Some(t) = run.tasks.iter().find(|t| t.kind != kind) {
        return Err(Error::new(Code::Unsupported, format!("task {} is of another kind than the first", t.name))
            .hint("one shared module learns classification or generation, not both; use --method dynamic"));
    }
    let n = run.tasks.len();
    let sets = (0..n).map(|t| run.prepare_train(t)).collect::<Result<Vec<_>>>()?;
    let classes = first_class(run, n);
    let head = run.trained_head(classes);
    let head = head.as_ref().map(|(f, n)| (f, *n));
    let data = Joined::of(sets.iter().enumerate().map(|(t, s)| (s, first_class(run, t))));
    let Outcome::Done(trained) = run.fit(&Lesson::new("joint", &data, head))? else { return Ok(None) };
    let mut draft = stage.draft;
    let digest: String = run.tasks.iter().map(|t| t.digest.as_str()).collect();
    let digest = conpet_formats::fingerprint::file_digest(digest.as_bytes());
    let module = run.add_module(&mut draft, &trained, &run.sites, &digest)?;
    let all: Vec<u32> = (0..n as u32).collect();
    let head = if classes > 0 { Some(run.add_head(&mut draft, &trained, all, None)?) } else { None };
    for t in 0..n {
        run.add_task(&mut draft, t, Some(module), head);
    }
    draft.manifest.selector.kind = SelectorKind::Single;
    run.account(&trained);
    Ok(Some(draft))
}
