//! `compare`: several methods on one stream, with several seeds and orders of the tasks, on one page.
//!
//! Each run is a `conpet-train stream` in a process of its own, so that its command can be repeated alone and
//! its peak memory is not mixed with that of others. Finished runs are not repeated; interrupted ones continue.

use super::settings::SettingsArgs;
use crate::config::Config;
use crate::report::{self, own_command};
use crate::rng::Stream;
use crate::stream;
use conpet_formats::{Code, Error, Result, fs};
use conpet_program::print::{print, say};
use conpet_program::{BaseArgs, ExitStatus};
use conpet_runtime::base::Base;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The stream's folder.
    pub stream: PathBuf,
    /// The base.
    #[command(flatten)]
    pub base: BaseArgs,
    /// Methods, comma-separated; METHOD:SELECTOR also sets the selector, as in dynamic:ridge, and
    /// METHOD:SETTING=VALUE sets any setting, as in lae:lae_experts=online (names as in --print-config).
    #[arg(long, value_delimiter = ',', required = true, value_name = "METHOD[:SELECTOR][:SETTING=VALUE],..")]
    pub methods: Vec<String>,
    /// Runs of each method and order, with seeds --seed, --seed + 1, ...
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// Orders of the tasks: the stream's own (or --order), then shuffled ones, the same in every run.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub orders: u64,
    /// The first order: the tasks' names, comma-separated.
    #[arg(long, value_name = "NAME,..")]
    pub order: Option<String>,
    /// Folder for report.json, report.html and the runs; finished runs in it are not repeated.
    #[arg(short = 'o', long = "out")]
    pub out: PathBuf,
    /// Learn only the first N tasks of the stream's own order.
    #[arg(long)]
    pub tasks: Option<usize>,
    /// Inputs of no task, as JSON lines [default: out_of_scope/test.jsonl of the stream, if it is there].
    #[arg(long, value_name = "FILE")]
    pub ood: Option<PathBuf>,
    /// The settings of all runs.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// A run to be made.
#[derive(Debug, Clone, PartialEq)]
struct Plan {
    /// The name that its files begin with.
    name: String,
    config: Config,
    /// Names of the tasks, comma-separated.
    order: String,
}

/// Makes the runs that are missing and writes the page. A method that cannot learn the stream is left out with
/// a message, and a failed run does not stop the others.
///
/// # Errors
/// If an argument is wrong, no method can learn the stream, the folder holds another comparison, or a run failed.
pub fn run(a: Args, stop: &AtomicBool) -> Result<ExitStatus> {
    let (config, _) = a.settings.over(Config::default())?;
    let mut tasks = stream::open(&a.stream)?;
    tasks.truncate(a.tasks.unwrap_or(usize::MAX).max(1));
    if let Some(order) = &a.order {
        stream::reorder(&mut tasks, order)?;
    }
    let names: Vec<&str> = tasks.iter().map(|t| t.name.as_str()).collect();
    let mut plans = plans(&a, &config, &names)?;
    // Check all methods first: a wrong setting of the last one should not show only after hours.
    let model = a.base.path()?;
    let base = Base::open(&model)?;
    plans.iter().try_for_each(|p| p.config.check(&base.spec).map(drop))?;
    drop(base);
    let mut unable: Vec<(String, Error)> = Vec::new();
    plans.retain(|p| match p.config.method().and_then(|m| m.check_tasks(&tasks)) {
        Ok(()) => true,
        Err(e) => {
            let name = report::name(&p.config);
            if unable.iter().all(|(known, _)| *known != name) {
                say(&format!("{name} is left out: {}", e.message()));
                unable.push((name, e));
            }
            false
        }
    });
    if plans.is_empty() {
        let e = unable.into_iter().next().map(|x| x.1);
        return Err(e.unwrap_or_else(|| Error::new(Code::Missing, "--methods names no method")));
    }
    let runs = a.out.join("runs");
    std::fs::create_dir_all(&runs).map_err(|e| Error::io("create", e).in_file(&runs))?;
    plans.iter().try_for_each(|p| begin(p, &runs))?;
    let (mut reports, mut failed) = (Vec::new(), Vec::new());
    for (i, plan) in plans.iter().enumerate() {
        let report = runs.join(&plan.name).join("report.json");
        let done = if report.exists() { " is done" } else { "" };
        say(&format!("{} of {}: {}{done}", i + 1, plans.len(), plan.name));
        if done.is_empty() {
            match learn(&a, &model, plan, &runs, stop) {
                Ok(true) => {}
                Ok(false) => {
                    say("stopped; the same command continues");
                    return Ok(ExitStatus::Stopped);
                }
                Err(e) => {
                    say(&format!("{}; continuing with the others", e.message()));
                    failed.push(e);
                    continue;
                }
            }
        }
        reports.push(report);
    }
    if !reports.is_empty() {
        let mut joined = report::joined(&reports)?;
        joined.origin.command = own_command();
        report::write_page(&joined, &a.out)?;
        print(joined.text().trim_start())?;
        say(&format!("report {}", a.out.join("report.html").display()));
    }
    failed.into_iter().next().map_or(Ok(ExitStatus::Success), Err)
}

/// All runs, methods innermost, so that a comparison stopped halfway has every method on fewer seeds.
fn plans(a: &Args, config: &Config, tasks: &[&str]) -> Result<Vec<Plan>> {
    let mut out: Vec<Plan> = Vec::new();
    for (order, names) in orders(tasks, a.orders as usize)?.iter().enumerate() {
        for seed in 0..a.seeds {
            for method in &a.methods {
                let mut config = variant(config, method.trim())?;
                config.services.training.seed += seed;
                let name = report::name(&config).replace(" (", "-").replace(", ", "-").replace(')', "");
                let name = name.replace(|c: char| !c.is_ascii_alphanumeric() && !"-._".contains(c), "-");
                let name = format!("{name}-seed{}-order{order}", config.services.training.seed);
                if out.iter().any(|p| p.name == name) {
                    return Err(Error::new(Code::Duplicate, format!("--methods names {method:?} twice"))
                        .hint("list each method once, or with another selector or setting, as in dynamic:ridge or dynamic:rank=1"));
                }
                out.push(Plan { name, config, order: names.join(",") });
            }
        }
    }
    Ok(out)
}

/// `METHOD[:SELECTOR][:SETTING=VALUE]..`, over the settings of all. A variant's name lists its own settings, so
/// that it is not taken for a repetition of the plain method.
fn variant(all: &Config, text: &str) -> Result<Config> {
    let mut parts = text.split(':');
    let method = parts.next().unwrap_or_default();
    let mut config = all.clone();
    config.run.method = method.to_owned();
    let own: Vec<&str> = parts.collect();
    for part in &own {
        match part.split_once('=') {
            Some((name, value)) => config = config.set(name, value)?,
            None => config.methods.dynamic.common.selector = (*part).to_owned(),
        }
    }
    if own.iter().any(|p| p.contains('=')) {
        config.run.name = format!("{method} ({})", own.join(", ")).into();
    }
    Ok(config)
}

/// The given order and shuffled ones, all different.
fn orders<'t>(tasks: &[&'t str], n: usize) -> Result<Vec<Vec<&'t str>>> {
    let mut out = vec![tasks.to_vec()];
    let mut draws = (1..).take(1000 + 100 * n);
    while out.len() < n {
        let Some(draw) = draws.next() else {
            return Err(Error::new(Code::Value, format!("--orders {n}: {} tasks have fewer orders", tasks.len()))
                .hint(format!("ask for at most {}", out.len())));
        };
        let mut names = tasks.to_vec();
        Stream::new(0, "order", draw).shuffle(&mut names);
        if !out.contains(&names) {
            out.push(names);
        }
    }
    Ok(out)
}

/// Writes a run's settings, or checks that they are those it was begun with.
fn begin(plan: &Plan, runs: &Path) -> Result<()> {
    let file = runs.join(format!("{}.toml", plan.name));
    let order = format!("# order: {}", plan.order);
    if !file.exists() {
        let text = format!("{order}\n{}\n", plan.config.toml()?);
        return fs::write_atomic(&file, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io("write", e)));
    }
    let text = fs::read_text(&file)?;
    if text.lines().next() == Some(&order) && Config::parse(&text).map_err(|e| e.in_file(&file))? == plan.config {
        return Ok(());
    }
    Err(Error::new(Code::Value, "the settings or the order differ from those this comparison was begun with")
        .in_file(&file)
        .hint("repeat the command it was begun with, or choose another folder with --out"))
}

/// Learns the stream in a process of its own; false if it was stopped.
fn learn(a: &Args, model: &Path, plan: &Plan, runs: &Path, stop: &AtomicBool) -> Result<bool> {
    let exe = std::env::current_exe().map_err(|e| Error::io("find this program", e))?;
    let file = |ending: &str| -> PathBuf { runs.join(format!("{}.{ending}", plan.name)) };
    let mut command = Command::new(exe);
    command.arg("stream").arg(&a.stream).arg("-m").arg(model).arg("-b").arg(file("cpb"));
    command.arg("--config").arg(file("toml")).arg("--report").arg(runs.join(&plan.name));
    command.args(["--order", &plan.order]);
    if let Some(n) = a.tasks {
        command.args(["--tasks", &n.to_string()]);
    }
    if let Some(ood) = &a.ood {
        command.arg("--ood").arg(ood);
    }
    if file("work").exists() {
        command.arg("--resume");
    }
    // Its table is part of the page, so it need not be printed; its progress and errors go to stderr.
    let status = command.stdout(Stdio::null()).status().map_err(|e| Error::io("start a run", e))?;
    match status.code() {
        Some(0) => {
            // Trunk states and checkpoints, which nothing needs any more.
            let _ = std::fs::remove_dir_all(file("work"));
            Ok(true)
        }
        Some(130 | 143) => Ok(false),
        _ if stop.load(Ordering::Relaxed) => Ok(false),
        _ => Err(Error::new(Code::Io, format!("the run {} failed ({status})", plan.name))
            .hint("see its message above; the same command continues after the runs that are done")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_all_different_and_always_the_same() {
        let got = orders(&["a", "b", "c"], 6).unwrap();
        assert_eq!(got[0], ["a", "b", "c"], "the given one first");
        assert!((0..6).all(|i| !got[..i].contains(&got[i])));
        assert_eq!(orders(&["a", "b", "c"], 3).unwrap(), got[..3]);
        assert!(orders(&["a", "b"], 3).unwrap_err().to_string().contains("at most 2"));
    }

    #[test]
    fn a_method_may_have_settings_of_its_own() {
        let all = Config::default().set("rank", "4").unwrap();
        let is = |c: &Config, settings: &[(&str, &str)], name: &str| {
            settings.iter().for_each(|(key, value)| assert_eq!(c.get(key).as_deref(), Some(*value), "{key}"));
            assert_eq!(report::name(c), name);
        };
        is(&variant(&all, "dynamic:ridge").unwrap(), &[("selector", "\"ridge\""), ("rank", "4")], "dynamic (ridge)");
        let c = variant(&all, "dynamic:ridge:rank=1:lr=1").unwrap();
        is(&c, &[("rank", "1"), ("lr", "1.0")], "dynamic (ridge, rank=1, lr=1)");
        let c = variant(&all, "lae:lae_experts=online").unwrap();
        is(&c, &[("lae_experts", "\"online\"")], "lae (lae_experts=online)");
        assert_eq!(variant(&all, "dynamic:params=5000").unwrap().services.module.params.get(), Some("5000"));
        for (bad, says) in [("dynamic:speed=1", "no such setting"), ("dynamic:rank=low", "low")] {
            assert!(variant(&all, bad).unwrap_err().to_string().contains(says), "{bad}");
        }
    }
}
