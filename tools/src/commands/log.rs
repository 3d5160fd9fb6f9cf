//! `log` lists the stages of a bundle, oldest first.

use super::short;
use crate::cli::FileArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::table::{Table, number};
use crate::view::{Damage, View};
use conpet_formats::bundle::StageInfo;
use serde::Serialize;

#[derive(Serialize)]
struct Log {
    schema: &'static str,
    file: String,
    /// The current stage; in a damaged file, the newest that is whole.
    current: u64,
    damage: Vec<Damage>,
    stages: Vec<Stage>,
}

#[derive(Serialize)]
struct Stage {
    stage: u64,
    parent: u64,
    offset: u64,
    digest: String,
    section_bytes: u64,
    signed: bool,
    tasks: Vec<String>,
    new_tasks: Vec<String>,
}

pub(super) fn run(args: &FileArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let view = View::open(&args.file, None, out)?;
    let mut damage = view.damage();
    let mut status = view.status();
    let history = view.history().unwrap_or_else(|e| {
        // The current stage was opened, so it at least can be shown.
        out.warn(&format!("{}; only the current stage is shown", e.brief()));
        damage.push(Damage::from(&e));
        status = ExitStatus::Damaged;
        vec![current(&view)]
    });
    let stages: Vec<Stage> = history.iter().map(|s| stage(s, &history)).collect();
    if out.json() {
        let file = args.file.display().to_string();
        out.object(&Log { schema: "conpet.inspect.log/1", file, current: view.stage(), damage, stages })?;
        return Ok(status);
    }
    let mut t = Table::new(&[">stage", ">parent", ">bytes", ">commit at", "commit", "learned"]);
    for s in &stages {
        let signed = if s.signed { " (signed)" } else { "" };
        let current = if s.digest == view.digest() { " (current)" } else { "" };
        let parent = if s.parent == 0 { "-".to_owned() } else { s.parent.to_string() };
        let learned = s.new_tasks.join(", ") + signed + current;
        let learned = learned.trim_start();
        let (n, bytes, at) = (s.stage.to_string(), number(s.section_bytes), number(s.offset));
        t.row([&n, &parent, &bytes, &at, short(&s.digest), learned]);
    }
    out.table("", &t);
    Ok(status)
}

fn stage(s: &StageInfo, all: &[StageInfo]) -> Stage {
    let before = all.iter().find(|p| p.stage == s.parent).map_or(&[][..], |p| &p.tasks);
    Stage {
        stage: s.stage,
        parent: s.parent,
        offset: s.offset,
        digest: s.digest.clone(),
        section_bytes: s.section_bytes,
        signed: s.signed,
        new_tasks: s.tasks.iter().filter(|t| !before.contains(t)).cloned().collect(),
        tasks: s.tasks.clone(),
    }
}

fn current(view: &View) -> StageInfo {
    StageInfo {
        stage: view.stage(),
        parent: 0,
        offset: 0,
        digest: view.digest(),
        tasks: view.manifest().tasks.iter().map(|t| t.name.clone()).collect(),
        section_bytes: view.sections().iter().map(|r| r.len).sum(),
        signed: view.signed(),
    }
}
