//! Rescue: whatever still verifies of a damaged bundle, as a new file.

use super::commit::SectionKind;
use super::manifest::Manifest;
use super::reader::current;
use super::rewrite::write_bundle;
use super::survey::{FoundStage, Survey};
use crate::selector::SelectorKind;
use crate::tensors::Tensors;
use crate::{Code, Error, Result, fs};
use std::path::Path;

/// What was saved, and what could not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The stage that was found.
    pub found: u64,
    /// Its number in the new file.
    pub stage: u64,
    /// Names of the tasks saved.
    pub tasks: Vec<String>,
    /// What had to be left out, a line each.
    pub lost: Vec<String>,
}

/// Writes the whole parts of a stage of a damaged bundle to `to`: of `stage`, else of the current one, else,
/// where no superblock is left, of the last commit in the file.
///
/// # Errors
/// If no whole commit is found, no task of the stage is whole, or `to` exists.
pub fn recover(path: &Path, to: &Path, stage: Option<u64>) -> Result<Recovered> {
    let survey = Survey::open(path)?;
    let slot = current(survey.bytes()).ok().map(|(s, _)| s);
    let known = || {
        let all: Vec<String> = survey.stages().iter().map(|s| s.stage.to_string()).collect();
        format!("whole commits of these stages were found: {}; choose one with --stage", all.join(", "))
    };
    let found = match (stage, slot) {
        (None, Some(slot)) => survey.stages().iter().find(|s| s.offset == slot.commit_off),
        _ => survey.stage(stage),
    }
    .ok_or_else(|| Error::new(Code::Missing, "the stage is not whole").in_file(path).hint(known()))?;
    let (mut manifest, lost) = salvage(&survey, found);
    if manifest.tasks.is_empty() && !found.manifest.tasks.is_empty() {
        let text = format!("no task of stage {} is whole", found.stage);
        return Err(Error::new(Code::Missing, text).in_file(path).hint(known()));
    }
    let kind = |i: u32| found.sections[i as usize].kind;
    // Sections of unknown kinds, which nothing refers to, are kept if they are whole.
    let ignorable = |i: u32| matches!(kind(i), SectionKind::Other(_)) && survey.section(found, i).is_ok();
    let kept = manifest.renumber((0..found.sections.len() as u32).map(ignorable).collect());
    let sections: Vec<(SectionKind, &[u8])> =
        kept.iter().map(|i| Ok((kind(*i), survey.section(found, *i)?))).collect::<Result<_>>()?;
    let highest = survey.stages().iter().map(|s| s.stage).chain(slot.map(|s| s.max_stage)).max();
    manifest.stage = highest
        .unwrap_or(found.stage)
        .checked_add(1)
        .ok_or_else(|| Error::new(Code::Value, "the file has used up all stage numbers").in_file(path))?;
    let of = format!("stage {}, commit {}", found.stage, found.digest);
    manifest.ext.insert("recovered_from".into(), of);
    let (stage, tasks) = (manifest.stage, manifest.tasks.iter().map(|t| t.name.clone()).collect());
    fs::create_new(to, |w| write_bundle(w, manifest, &sections).map(drop))?;
    Ok(Recovered { found: found.stage, stage, tasks, lost })
}

/// The manifest without whatever needs a damaged section, and a line for each thing left out.
fn salvage(survey: &Survey, found: &FoundStage) -> (Manifest, Vec<String>) {
    let mut m = found.manifest.clone();
    let mut lost = Vec::new();
    let bad = |section: u32| {
        let payload = survey.section(found, section);
        payload.and_then(|b| Tensors::parse(b).map(drop)).is_err()
    };
    let module_ok: Vec<bool> = m.modules.iter().map(|x| !bad(x.section)).collect();
    let mut head_ok: Vec<bool> = m.heads.iter().map(|h| !bad(h.section)).collect();
    let lost_modules = m.modules.iter().zip(&module_ok).filter(|(_, ok)| !**ok);
    lost.extend(lost_modules.map(|(x, _)| format!("module {} is damaged", x.id)));
    let lost_heads = m.heads.iter().zip(&head_ok).filter(|(_, ok)| !**ok);
    lost.extend(lost_heads.map(|(h, _)| format!("head {} is damaged", h.id)));
    // A task needs its modules and its head, and a head all its tasks; repeated until nothing more has to go.
    let mut task_ok = vec![true; m.tasks.len()];
    loop {
        let mut again = false;
        for (i, t) in m.tasks.iter().enumerate().filter(|(i, _)| task_ok[*i]).collect::<Vec<_>>() {
            let modules = t.module.iter().chain(&t.ensemble).all(|x| module_ok[*x as usize]);
            if !modules || t.head.is_some_and(|h| !head_ok[h as usize]) {
                task_ok[i] = false;
                again = true;
            }
        }
        for (i, h) in m.heads.iter().enumerate() {
            head_ok[i] &= h.tasks.iter().all(|t| task_ok[*t as usize]);
        }
        if !again {
            break;
        }
    }
    let lost_tasks = m.tasks.iter().zip(&task_ok).filter(|(_, ok)| !**ok);
    lost.extend(lost_tasks.map(|(t, _)| format!("task {} is left out", t.name)));

    let s = &mut m.selector;
    let chooses_among_all = task_ok.iter().all(|ok| *ok);
    let selector_ok = !s.section.is_some_and(bad) && s.module.is_none_or(|x| module_ok[x as usize]);
    if s.stats.is_some_and(bad) {
        s.stats = None;
        lost.push(
            "the selector's statistics are damaged: no further task can be learned without data of the earlier ones"
                .into(),
        );
    }
    if !selector_ok || !chooses_among_all && s.kind.reads() {
        let why = if selector_ok { "chooses among tasks that are left out" } else { "is damaged" };
        lost.push(format!("the selector {why}: name the task with --task, or learn the bundle again"));
        (s.kind, s.feature, s.module, s.section, s.stats) = (SelectorKind::Task, None, None, None, None);
    }

    // Indices close up over what is left out, and so do the ids made from them.
    let (modules, heads, tasks) = (renumbered(&module_ok), renumbered(&head_ok), renumbered(&task_ok));
    let of = |map: &[Option<u32>], i: &mut u32| *i = map[*i as usize].unwrap_or(u32::MAX);
    retain(&mut m.modules, &module_ok);
    retain(&mut m.heads, &head_ok);
    retain(&mut m.tasks, &task_ok);
    for (i, x) in m.modules.iter_mut().enumerate() {
        x.id = format!("m{i:04}");
    }
    for (i, h) in m.heads.iter_mut().enumerate() {
        h.id = format!("h{i:04}");
        h.tasks.iter_mut().for_each(|t| of(&tasks, t));
    }
    for (i, t) in m.tasks.iter_mut().enumerate() {
        t.id = i as u32;
        t.module.iter_mut().chain(&mut t.ensemble).for_each(|x| of(&modules, x));
        t.head.iter_mut().for_each(|h| of(&heads, h));
    }
    m.selector.module.iter_mut().for_each(|x| of(&modules, x));
    (m, lost)
}

/// The new index of each entry that is kept.
fn renumbered(ok: &[bool]) -> Vec<Option<u32>> {
    let mut next = 0..;
    ok.iter().map(|ok| if *ok { next.next() } else { None }).collect()
}

fn retain<T>(all: &mut Vec<T>, ok: &[bool]) {
    let mut ok = ok.iter();
    all.retain(|_| ok.next() == Some(&true));
}
