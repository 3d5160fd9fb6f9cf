//! `tasks` lists the tasks of a stage and their labels.

use crate::cli::StageArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::table::Table;
use crate::view::{Damage, View};
use conpet_formats::bundle::manifest::{Manifest, TaskEntry, TaskKind};
use serde::Serialize;

#[derive(Serialize)]
struct Tasks<'a> {
    schema: &'static str,
    file: String,
    stage: u64,
    damage: Vec<Damage>,
    tasks: Vec<Task<'a>>,
}

#[derive(Serialize)]
struct Task<'a> {
    id: u32,
    name: &'a str,
    kind: TaskKind,
    stage: u64,
    module: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ensemble: Vec<&'a str>,
    head: Option<&'a str>,
    labels: &'a [String],
    max_answer: u32,
    template: &'a str,
}

fn task<'a>(m: &'a Manifest, t: &'a TaskEntry) -> Task<'a> {
    Task {
        id: t.id,
        name: &t.name,
        kind: t.kind,
        stage: t.stage,
        module: t.module.map(|i| m.modules[i as usize].id.as_str()),
        ensemble: t.ensemble.iter().map(|i| m.modules[*i as usize].id.as_str()).collect(),
        head: t.head.map(|i| m.heads[i as usize].id.as_str()),
        labels: &t.labels,
        max_answer: t.max_answer,
        template: &t.template,
    }
}

pub(super) fn run(args: &StageArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let view = View::open(&args.file, args.stage, out)?;
    let m = view.manifest();
    let tasks: Vec<Task<'_>> = m.tasks.iter().map(|t| task(m, t)).collect();
    if out.json() {
        out.object(&Tasks {
            schema: "conpet.inspect.tasks/1",
            file: args.file.display().to_string(),
            stage: view.stage(),
            damage: view.damage(),
            tasks,
        })?;
        return Ok(view.status());
    }
    let mut t = Table::new(&[">#", "task", "kind", ">stage", "module", "head", ">labels", "template"]);
    for x in &tasks {
        let kind = match x.kind {
            TaskKind::Classification => "classification".to_owned(),
            TaskKind::Generation => format!("generation (up to {} tokens)", x.max_answer),
        };
        let (id, stage, labels) = (x.id.to_string(), x.stage.to_string(), x.labels.len().to_string());
        let modules: Vec<&str> = x.module.into_iter().chain(x.ensemble.iter().copied()).collect();
        let module = if modules.is_empty() { "-".to_owned() } else { modules.join(" | ") };
        t.row([&id, x.name, &kind, &stage, &module, x.head.unwrap_or("-"), &labels, x.template]);
    }
    out.table("", &t);
    for x in tasks.iter().filter(|x| !x.labels.is_empty()) {
        let mut t = Table::new(&[">row", "label"]);
        x.labels.iter().enumerate().for_each(|(i, l)| t.row([&i.to_string(), l]));
        out.table(&crate::escape::text(&format!("labels of {}", x.name)), &t);
    }
    Ok(view.status())
}
