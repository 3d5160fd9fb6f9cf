//! What the commands do.

use crate::cli::{AddArgs, Cli, Command, EvalArgs, ProbeArgs, ReportArgs, StreamArgs, SweepArgs, TinyArgs};
use crate::config::Config;
use crate::data::{Plan, Prepared};
use crate::evaluate::{Evaluator, TestSet};
use crate::metrics::{Metric, metrics};
use crate::progress::Bar;
use crate::report::sweep::Sweep;
use crate::report::{self, MethodReport, Origin, Report, SCHEMA, page, without_folders};
use crate::run::Run;
use crate::selectors;
use crate::stream;
use crate::sweep::{DEFAULT_KINDS, Wanted};
use conpet_formats::bundle::Bundle;
use conpet_formats::quant::QuantType;
use conpet_formats::{Code, Error, Result, fs, tiny};
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It did all it should.
    Finished,
    /// Ctrl-C; `--resume` goes on.
    Stopped,
}

/// Runs a command.
///
/// # Errors
/// Names the file, the place, the value and the remedy.
pub fn run(cli: Cli, stop: &AtomicBool) -> Result<Done> {
    match cli.command {
        Command::Stream(a) => learn(*a, stop),
        Command::Add(a) => add(*a, stop),
        Command::Eval(a) => eval(&a).map(|()| Done::Finished),
        Command::Compare(a) => crate::compare::compare(*a, stop),
        Command::Probe(a) => probe(&a).map(|()| Done::Finished),
        Command::Sweep(a) => sweep(*a, stop),
        Command::Report(a) => join(&a).map(|()| Done::Finished),
        Command::TinyBase(a) => tiny_base(&a).map(|()| Done::Finished),
    }
}

/// Prints an error with its hint, as `error: ...` and `hint: ...`.
pub fn complain(e: &Error) {
    let _ = writeln!(std::io::stderr(), "error: {e}");
}

pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

pub(crate) fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("print", e))
}

/// An engine whose batches suit throughput rather than memory.
fn engine(model: &Path, threads: usize) -> Result<Engine> {
    Ok(Engine::open(model, threads)?.with_batch(512))
}

fn learn(a: StreamArgs, stop: &AtomicBool) -> Result<Done> {
    let preset = a.preset.as_deref().map_or_else(|| Ok(Config::default()), Config::preset)?;
    let config = a.settings.overlay(preset.over(a.config.as_deref())?);
    if a.print_config {
        let text = toml::to_string(&config).map_err(|e| Error::new(Code::Value, e.to_string()))?;
        print(text.trim_end())?;
        return Ok(Done::Finished);
    }
    let (Some(path), Some(model)) = (a.stream, a.model) else {
        return Err(Error::new(Code::Missing, "a stream and a base are needed"));
    };
    let mut tasks = stream::open(&path)?;
    tasks.truncate(a.tasks.unwrap_or(usize::MAX).max(1));
    if let Some(names) = &a.order {
        stream::reorder(&mut tasks, names)?;
    }
    let strangers = stream::out_of_scope(&path, a.ood.as_deref())?;
    let e = engine(&model, config.threads)?;
    let n = tasks.len();
    let rows: usize = tasks.iter().map(|t| t.train.len()).sum();
    say(&format!(
        "{n} tasks, {rows} training rows; base {} ({} layers, trunk {}); {} threads, {} kernels",
        e.base.spec.name,
        e.base.spec.n_layer,
        config.trunk(&e.base.spec),
        e.cpu().threads.n(),
        e.cpu().kernels.name()
    ));
    let fixed = crate::method::by_name(&config.method).is_some_and(|m| m.fixed);
    if fixed {
        let (steps, rows) = (config.budget(), config.budget() * config.batch as u64);
        say(&format!(
            "budget of each task after the first: {steps} steps on mixtures of new and old rows, {rows} rows"
        ));
    }
    say(&format!("settings: {}", toml::to_string(&config).unwrap_or_default().trim_end().replace('\n', ", ")));
    let mut bar = Bar::new();
    let mut run = Run::new(config, &e, tasks, &a.bundle, stop, |event| bar.show(&event))?;
    run.strangers = strangers;
    let outcome = run.stream(a.resume)?;
    drop(run);
    bar.clear();
    let Some(method) = outcome else {
        say(&format!("stopped; go on with the same command and --resume ({})", a.bundle.display()));
        return Ok(Done::Stopped);
    };
    let dir = a.report.unwrap_or_else(|| a.bundle.with_extension("report"));
    let report = Report::new(Origin::here(&e)).with(vec![method]);
    write_report(&report, &dir)?;
    print(report.text().trim_start())?;
    say(&format!("bundle {}, report {}", a.bundle.display(), dir.join("report.html").display()));
    Ok(Done::Finished)
}

pub(crate) fn write_report(r: &Report, dir: &Path) -> Result<()> {
    report::write(dir, "report", r, &page(r))
}

fn join(a: &ReportArgs) -> Result<()> {
    let out = joined(&a.reports)?;
    write_report(&out, &a.out)?;
    print(out.text().trim_start())
}

/// Runs on one stream as one report.
///
/// # Errors
/// If a file is no report, or the runs are of other tasks.
pub(crate) fn joined(paths: &[PathBuf]) -> Result<Report> {
    let mut all: Vec<Report> = Vec::new();
    for path in paths {
        let bytes = fs::read(path)?;
        all.push(serde_json::from_slice(&bytes).map_err(|e| {
            Error::new(Code::Value, e.to_string()).in_file(path).hint("give report.json files written by conpet-train")
        })?);
    }
    let sorted = |m: &MethodReport| {
        let mut names = m.tasks.clone();
        names.sort();
        names
    };
    let tasks: Vec<_> = all.iter().flat_map(|r| &r.methods).map(sorted).collect();
    for (r, path) in all.iter().zip(paths) {
        if r.methods.iter().any(|m| sorted(m) != tasks[0]) {
            return Err(Error::new(Code::Value, "the reports are of different streams")
                .in_file(path)
                .hint("join runs on the same tasks, in any order"));
        }
    }
    let commands: Vec<String> = all.iter().map(|r| without_folders(&r.origin.command)).collect();
    let methods = all.iter().flat_map(|r| r.methods.clone()).collect();
    let first = all.swap_remove(0);
    Ok(Report::new(Origin { command: commands.join(" ; "), ..first.origin }).with(methods))
}

fn add(a: AddArgs, stop: &AtomicBool) -> Result<Done> {
    let mut config = a.settings.overlay(Config::load(a.config.as_deref())?);
    let bundle = Bundle::open(&a.bundle)?;
    let task = stream::open_task(&a.task)?;
    let m = bundle.manifest();
    if m.tasks.iter().any(|t| t.name == task.name) {
        return Err(Error::new(Code::Duplicate, format!("the bundle already knows a task {:?}", task.name))
            .in_file(&a.bundle)
            .hint("give the task's folder another name"));
    }
    let method = crate::method::by_name(&m.method).is_some_and(|x| !x.shared);
    let selector = selectors::by_name(m.selector.kind.name()).is_ok_and(|s| !s.needs_old_rows);
    if !method || !selector {
        return Err(Error::new(Code::Unsupported, format!("a bundle learned by {} with a {} selector", m.method, m.selector.kind.name()))
            .in_file(&a.bundle)
            .hint("add needs no older rows, so it works for --method per-task, and dynamic with any --selector but conpet; run the stream again for others"));
    }
    // What the stages must share follows the bundle.
    config.method = m.method.clone();
    config.selector = m.selector.kind.name().into();
    config.trunk = i64::from(m.trunk);
    let e = engine(&a.model, config.threads)?;
    // A run on another base must fail before anything is trained.
    Skills::new(Bundle::open(&a.bundle)?, &e.base).map_err(|e| e.in_file(&a.bundle))?;
    let known = m.tasks.iter().map(|t| stream::Task {
        name: t.name.clone(),
        kind: t.kind,
        labels: t.labels.clone(),
        template: t.template.clone(),
        max_answer: t.max_answer,
        train: Vec::new(),
        valid: Vec::new(),
        test: Vec::new(),
        digest: String::new(),
        metric: Metric::default(),
    });
    let name = task.name.clone();
    let tasks = known.chain([task]).collect();
    let feature = m.selector.feature.clone();
    let mut bar = Bar::new();
    let mut run = Run::new(config, &e, tasks, &a.bundle, stop, |event| bar.show(&event))?;
    run.selector_feature = feature.unwrap_or(run.selector_feature);
    run.bundle = Some(bundle);
    let outcome = run.add()?;
    drop(run);
    bar.clear();
    let Some(s) = outcome else {
        say("stopped; the same command goes on from the last checkpoint");
        return Ok(Done::Stopped);
    };
    let (right, rows): (usize, usize) = (s.right.iter().sum(), s.rows.iter().sum());
    print(&format!("added {name}: {right} of {rows} test rows right, chosen among {} tasks", s.rows.len()))?;
    Ok(Done::Finished)
}

fn eval(a: &EvalArgs) -> Result<()> {
    let e = engine(&a.model, a.threads)?;
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
    let result = tasks
        .iter()
        .enumerate()
        .try_for_each(|(i, t)| {
            let (task, rows) = crate::run::bare(t, "test");
            let file = work.join(format!("{i}.states"));
            let data = Prepared::new(&e, &task, &rows, plan, Some(&file), &mut |_| {})?;
            evaluator.add(TestSet { task: i, rows: t.test.clone(), data });
            Ok(())
        })
        .and_then(|()| {
            if !strangers.is_empty() {
                let (task, file) = (crate::run::bare(&tasks[0], "test").0, work.join("strangers.states"));
                evaluator.set_strangers(Prepared::new(&e, &task, &strangers, plan, Some(&file), &mut |_| {})?);
            }
            evaluator.score(&e, &skills, &tasks, tasks.len())
        });
    let _ = std::fs::remove_dir_all(&work);
    let scores = result?;
    let figures = metrics(std::slice::from_ref(&scores));
    if a.json {
        let v = serde_json::json!({ "schema": SCHEMA, "stage": skills.bundle().stage(), "scores": scores, "metrics": figures });
        return print(&v.to_string());
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
    match figures.detection {
        None => Ok(()),
        Some(d) => print(&format!(
            "{} inputs of no task: AUROC {:.1} %  FPR@95 {:.1} %  refused {:.1} %, of the tasks' own {:.1} %",
            d.rows,
            100.0 * d.auroc,
            100.0 * d.fpr95,
            100.0 * d.refused,
            100.0 * d.refused_known
        )),
    }
}

fn probe(a: &ProbeArgs) -> Result<()> {
    let e = engine(&a.model, a.threads)?;
    let config = Config { max_len: a.max_len, ..Config::default() };
    config.check(&e.base.spec)?;
    if let Some(bad) = a.shrinkage.iter().find(|v| !(0.0..=1.0).contains(*v)) {
        return Err(Error::new(Code::Value, format!("--shrinkage {bad} is not allowed"))
            .hint("--shrinkage takes a number from 0 to 1"));
    }
    if let Some(bad) = a.ngram_weight.iter().find(|v| !(0.0..1e6).contains(*v)) {
        return Err(Error::new(Code::Value, format!("--ngram-weight {bad} is not allowed"))
            .hint("--ngram-weight takes 0 or a positive number"));
    }
    let mut tasks = stream::open(&a.stream)?;
    tasks.iter_mut().for_each(|t| t.subset(a.subset, 0));
    let mut bar = Bar::new();
    let found = crate::probe::probe(&e, &tasks, &config, &a.features, &a.shrinkage, &a.ngram_weight, &mut |what| {
        bar.show(&crate::run::Event::Begin(what));
    });
    bar.clear();
    let found = found?;
    if !a.json {
        print("classes  routing   dim  shrinkage  n-grams  feature (validation rows)")?;
    }
    for p in found {
        if a.json {
            print(&serde_json::to_string(&p).map_err(|e| Error::new(Code::Value, e.to_string()))?)?;
        } else {
            let [c, r] = [p.classes, p.routing].map(|v| 100.0 * v);
            print(&format!(
                "{c:>6.1}%  {r:>6.1}%  {:>4}  {:>9}  {:>7}  {}",
                p.dim, p.shrinkage, p.ngram_weight, p.feature
            ))?;
        }
    }
    Ok(())
}

fn sweep(a: SweepArgs, stop: &AtomicBool) -> Result<Done> {
    let config = a.settings.overlay(Config::load(a.config.as_deref())?);
    let mut tasks = stream::open(&a.stream)?;
    if let Some(name) = a.tasks.iter().find(|n| !tasks.iter().any(|t| t.name == **n)) {
        let known: Vec<_> = tasks.iter().map(|t| t.name.as_str()).collect();
        return Err(Error::new(Code::Missing, format!("the stream has no task {name:?}"))
            .in_file(&a.stream)
            .hint(format!("it has {}", known.join(", "))));
    }
    let first = tasks[0].name.clone();
    tasks.retain(|t| if a.tasks.is_empty() { t.name == first } else { a.tasks.contains(&t.name) });
    let e = engine(&a.model, config.threads)?;
    let kinds = if a.kinds.is_empty() { DEFAULT_KINDS.map(String::from).to_vec() } else { a.kinds };
    let wanted = Wanted { kinds, sizes: a.sizes, rates: a.rates, seeds: a.seeds.max(1) };
    let head = Sweep { origin: Origin::here(&e), ..Sweep::default() };
    let mut bar = Bar::new();
    let done =
        crate::sweep::sweep(&e, &config, &tasks, &wanted, head, (&a.out, a.resume), stop, |event| bar.show(&event))?;
    bar.clear();
    let Some(result) = done else {
        say(&format!("stopped; go on with the same command and --resume ({})", a.out.display()));
        return Ok(Done::Stopped);
    };
    print(result.text().trim_end())?;
    say(&format!("{}", a.out.join("sweep.html").display()));
    Ok(Done::Finished)
}

fn tiny_base(a: &TinyArgs) -> Result<()> {
    let bytes = tiny::base(&tiny::TinyConfig { seed: a.seed, ..tiny::TinyConfig::default() })?;
    fs::create_new(&a.out, |w| w.write_all(&bytes).map_err(|e| Error::io("write", e)))
}
