//! `eval`: scores a bundle on a stream's test rows.

use super::engine;
use crate::data::{Plan, Prepared};
use crate::evaluate::{Evaluator, TestSet};
use crate::metrics::metrics;
use crate::report::SCHEMA;
use crate::services::prepare::{Split, bare};
use crate::stream::{self, Row, Task};
use conpet_formats::bundle::Bundle;
use conpet_formats::quant::QuantType;
use conpet_formats::{Code, Error, Result};
use conpet_program::print::print;
use conpet_program::{BaseArgs, ExitStatus};
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use std::path::PathBuf;

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The stream's folder.
    pub stream: PathBuf,
    /// The base.
    #[command(flatten)]
    pub base: BaseArgs,
    /// The bundle.
    #[arg(short = 'b', long = "bundle")]
    pub bundle: PathBuf,
    /// Inputs of no task, as JSON lines [default: out_of_scope/test.jsonl of the stream, if it is there].
    #[arg(long, value_name = "FILE")]
    pub ood: Option<PathBuf>,
    /// Score this stage instead of the newest.
    #[arg(long)]
    pub stage: Option<u64>,
    /// Worker threads; 0 is one for each processor.
    #[arg(short = 't', long, default_value_t = 0)]
    pub threads: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Scores a stage and prints its metrics.
///
/// # Errors
/// The command's error, which names the file, the place, the value and the remedy.
pub fn run(a: &Args) -> Result<ExitStatus> {
    let e = engine::open(&a.base.path()?, a.threads)?;
    let bundle = match a.stage {
        Some(g) => Bundle::open_stage(&a.bundle, g)?,
        None => Bundle::open(&a.bundle)?,
    };
    let skills = Skills::new(bundle, &e.base).map_err(|x| x.in_file(&a.bundle))?;
    let m = skills.manifest();
    let strangers = stream::out_of_scope(&a.stream, a.ood.as_deref())?;
    let mut tasks = stream::open(&a.stream)?;
    tasks.retain(|t| m.tasks.iter().any(|x| x.name == t.name));
    tasks.sort_by_key(|t| m.tasks.iter().position(|x| x.name == t.name));
    if tasks.len() != m.tasks.len() {
        return Err(Error::new(Code::Missing, "the stream lacks some of the bundle's tasks").in_file(&a.stream).hint(
            format!("the bundle knows {}", m.tasks.iter().map(|t| t.name.as_str()).collect::<Vec<_>>().join(", ")),
        ));
    }
    let work = std::env::temp_dir().join(format!("conpet-eval-{}", std::process::id()));
    std::fs::create_dir_all(&work).map_err(|e| Error::io("create", e).in_file(&work))?;
    let mut evaluator = Evaluator::default();
    let plan = Plan {
        trunk: skills.trunk(),
        selector: Engine::trunk_feature(&skills),
        head: None,
        max_len: e.context().min(4096),
        says_labels: false,
        keep: QuantType::F32,
    };
    // The file is gone once it is mapped: a signal that ends the program while it scores leaves no states behind.
    let prepared = |task: &Task, rows: &[Row], name: &str| {
        let file = work.join(name);
        let data = Prepared::new(&e, task, rows, plan, Some(&file), &mut |_| {});
        let _ = std::fs::remove_file(&file);
        data
    };
    let result = tasks
        .iter()
        .enumerate()
        .try_for_each(|(i, t)| {
            let (task, rows) = bare(t, Split::Test);
            let data = prepared(&task, &rows, &format!("{i}.states"))?;
            evaluator.add(TestSet { task: i, rows: t.test.clone(), data });
            Ok(())
        })
        .and_then(|()| {
            if !strangers.is_empty() {
                let task = bare(&tasks[0], Split::Test).0;
                evaluator.set_strangers(prepared(&task, &strangers, "strangers.states")?);
            }
            evaluator.score(&e, &skills, &tasks, tasks.len())
        });
    let _ = std::fs::remove_dir_all(&work);
    let scores = result?;
    let figures = metrics(std::slice::from_ref(&scores));
    if a.json {
        let v = serde_json::json!({ "schema": SCHEMA, "stage": skills.bundle().stage(), "scores": scores, "metrics": figures });
        print(&v.to_string())?;
        return Ok(ExitStatus::Success);
    }
    for (t, task) in tasks.iter().enumerate() {
        let x = &scores.tasks[t];
        let more = [("macro-F1", x.macro_f1), ("ROUGE-L", x.rouge_l)];
        let more: String = more.iter().filter_map(|(n, v)| Some(format!("  {n} {:.1}", 100.0 * (*v)?))).collect();
        let (right, rows) = (scores.right[t], scores.rows[t]);
        print(&format!(
            "{:<32} {:>5.1} %  ({right} of {rows}){more}",
            task.name,
            100.0 * right as f64 / rows.max(1) as f64
        ))?;
    }
    print(&format!(
        "whole {:.1} %  average {:.1} %  routing {:.1} %  with the task known {:.1} %",
        100.0 * figures.whole_accuracy,
        100.0 * figures.average_accuracy,
        100.0 * figures.routing_accuracy,
        100.0 * figures.oracle_accuracy
    ))?;
    if let Some(d) = figures.detection {
        print(&format!(
            "{} inputs of no task: AUROC {:.1} %  FPR@95 {:.1} %  refused {:.1} %, of the tasks' own {:.1} %",
            d.rows,
            100.0 * d.auroc,
            100.0 * d.fpr95,
            100.0 * d.refused,
            100.0 * d.refused_known
        ))?;
    }
    Ok(ExitStatus::Success)
}
