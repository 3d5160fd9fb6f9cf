//! One module and one head, trained on the rows of all tasks at once: the upper bound for shared modules.

use crate::data::Joined;
use crate::fit::Outcome;
use crate::services::{Lesson, Services, Stage};
pub use crate::settings::NoSettings as Settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::selector::SelectorKind;

/// Learns the whole stream in one stage.
pub fn learn(services: &mut Services<'_>, _: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let n = services.tasks().len();
    let sets = (0..n).map(|t| services.prepare_train(t)).collect::<Result<Vec<_>>>()?;
    let classes = services.first_class(n);
    let head = services.trained_head(classes);
    let head = head.as_ref().map(|(f, n)| (f, *n));
    let data = Joined::of(sets.iter().enumerate().map(|(t, s)| (s, services.first_class(t))));
    let Outcome::Done(trained) = services.fit(&Lesson::new("joint", &data, head))? else { return Ok(None) };
    let mut draft = stage.draft;
    let digest: String = services.tasks().iter().map(|t| t.digest.as_str()).collect();
    let digest = conpet_formats::fingerprint::file_digest(digest.as_bytes());
    let module = services.add_module(&mut draft, &trained, services.module(), &digest)?;
    let all: Vec<u32> = (0..n as u32).collect();
    let head = if classes > 0 { Some(services.add_head(&mut draft, &trained, all, None)?) } else { None };
    for t in 0..n {
        services.add_task(&mut draft, t, Some(module), head);
    }
    draft.manifest.selector.kind = SelectorKind::Single;
    services.account(&trained);
    Ok(Some(draft))
}
