//! Few rows: no validation split is needed, modules are kept only where they help, and n-grams alone may answer.

use conpet_formats::Code;
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use conpet_tests::{tiny_engine, tiny_stream, tiny_with};
use conpet_trainer::config::Config;
use conpet_trainer::report::MethodReport;
use conpet_trainer::run::Run;
use conpet_trainer::stream::{self, Task};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// The tasks with labels, without validation rows.
fn tasks(dir: &Path) -> Vec<Task> {
    let root = tiny_stream(dir);
    for task in ["colour", "size"] {
        let _ = std::fs::remove_file(root.join(task).join("valid.jsonl"));
    }
    let mut tasks = stream::open(&root).unwrap();
    tasks.truncate(2);
    assert!(tasks.iter().all(|t| t.valid.is_empty()));
    tasks
}

fn learn(config: Config, engine: &Engine, tasks: Vec<Task>, path: &Path) -> MethodReport {
    let stop = AtomicBool::new(false);
    Run::new(config, engine, tasks, path, &stop, |_| {}).unwrap().stream(false).unwrap().unwrap()
}

#[test]
fn with_modules_or_without_none_is_below_the_closed_form() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let right = |modules: &str| {
        let path = dir.path().join(format!("{modules}.cpb"));
        let config = tiny_with(&format!("modules={modules} epochs=6 score=last"));
        let report = learn(config, &engine, tasks(dir.path()), &path);
        let skills = Skills::open(&path, &engine.base).unwrap();
        let modules = skills.manifest().modules.len();
        (report.stages.last().unwrap().right.iter().sum::<usize>(), modules)
    };
    let (closed, none) = right("none");
    let (auto, _) = right("auto");
    let (_, both) = right("train");
    assert_eq!((none, both), (0, 2));
    assert!(auto >= closed, "{auto} rows right with modules that were to help, {closed} without any");
}

#[test]
fn selectors_that_need_validation_rows_say_so_before_anything_is_trained() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let stop = AtomicBool::new(false);
    let run = |config| Run::new(config, &engine, tasks(dir.path()), &dir.path().join("x.cpb"), &stop, |_| {}).err();
    let e = run(tiny_with("selector=ridge")).unwrap();
    assert!(e.code() == Code::Missing && e.message().contains("colour") && e.remedy().contains("lda"), "{e}");
    assert!(run(tiny_with("selector=lda")).is_none() && run(tiny_with("selector=task method=per-task")).is_none());
}

#[test]
fn n_grams_answer_alone_only_as_all_witnesses_would() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let (path, tasks) = (dir.path().join("fast.cpb"), tasks(dir.path()));
    let report = learn(tiny_with("modules=none score=last"), &engine, tasks.clone(), &path);
    let skills = Skills::open(&path, &engine.base).unwrap();
    assert!(skills.selector().has_fast());
    let texts: Vec<&str> = tasks.iter().flat_map(|t| &t.test).map(|r| r.text.as_str()).collect();
    let slow = engine.classify(&skills, &texts, None).unwrap();
    let mut answered = 0;
    for (text, slow) in texts.iter().zip(&slow) {
        let Some(fast) = engine.fast(&skills, text).unwrap() else { continue };
        answered += 1;
        assert_eq!((&fast.label, fast.task), (&slow.label, slow.task), "{text}");
        assert!(fast.probability > 0.0 && fast.probability <= 1.0);
    }
    let last = report.stages.last().unwrap();
    let counted: usize = last.tasks.iter().map(|t| t.fast).sum();
    assert!(answered > 0 && counted == answered, "{answered} answered, {counted} reported");
    assert!(engine.fast(&skills, "zzz qqq").unwrap().is_none(), "words never seen are no evidence");
}
