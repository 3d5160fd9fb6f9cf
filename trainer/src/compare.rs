//! `compare`: several methods on one stream, with several seeds and orders of the tasks, on one page.
//!
//! Each run is a `conpet-train stream` of its own, in a process of its own: its command can be repeated
//! alone, and its peak memory is its own. What is finished is not run again; what was begun goes on.

use crate::cli::CompareArgs;
use crate::commands::{Done, joined, print, say, write_report};
use crate::config::Config;
use crate::report::own_command;
use crate::rng::Stream;
use crate::stream;
use conpet_formats::{Code, Error, Result, fs};
use conpet_runtime::base::Base;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// One run.
#[derive(Debug, Clone, PartialEq)]
struct Plan {
    /// Names its files.
    name: String,
    config: Config,
    /// Names of the tasks, comma-separated.
    order: String,
}

/// Runs what is missing and writes the page.
///
/// # Errors
/// If an argument is wrong, the folder holds another comparison, or a run fails.
pub fn compare(a: CompareArgs, stop: &AtomicBool) -> Result<Done> {
    let config = a.settings.clone().overlay(Config::load(a.config.as_deref())?);
    let mut tasks = stream::open(&a.stream)?;
    tasks.truncate(a.tasks.unwrap_or(usize::MAX).max(1));
    if let Some(order) = &a.order {
        stream::reorder(&mut tasks, order)?;
    }
    let names: Vec<&str> = tasks.iter().map(|t| t.name.as_str()).collect();
    let plans = plans(&a, &config, &names)?;
    // A wrong setting of the last method should not show after hours.
    let base = Base::open(&a.model)?;
    plans.iter().try_for_each(|p| p.config.check(&base.spec))?;
    drop(base);
    let runs = a.out.join("runs");
    std::fs::create_dir_all(&runs).map_err(|e| Error::io("create", e).in_file(&runs))?;
    let mut reports = Vec::new();
    for (i, plan) in plans.iter().enumerate() {
        let report = runs.join(&plan.name).join("report.json");
        begin(plan, &runs)?;
        if report.exists() {
            say(&format!("{} of {}: {} is done", i + 1, plans.len(), plan.name));
        } else {
            say(&format!("{} of {}: {}", i + 1, plans.len(), plan.name));
            if run(&a, plan, &runs, stop)? == Done::Stopped {
                say("stopped; the same command goes on");
                return Ok(Done::Stopped);
            }
        }
        reports.push(report);
    }
    let mut report = joined(&reports)?;
    report.origin.command = own_command();
    write_report(&report, &a.out)?;
    print(report.text().trim_start())?;
    say(&format!("report {}", a.out.join("report.html").display()));
    Ok(Done::Finished)
}

/// Every run, methods innermost: whoever stops halfway has all methods on fewer seeds.
fn plans(a: &CompareArgs, config: &Config, tasks: &[&str]) -> Result<Vec<Plan>> {
    let mut out: Vec<Plan> = Vec::new();
    for (order, names) in orders(tasks, a.orders as usize)?.iter().enumerate() {
        for seed in 0..a.seeds {
            for method in &a.methods {
                let config = variant(config, method.trim())?;
                let config = Config { seed: config.seed + seed, ..config };
                let name = crate::report::name(&config).replace(" (", "-").replace(", ", "-").replace(')', "");
                let name = name.replace(|c: char| !c.is_ascii_alphanumeric() && !"-._".contains(c), "-");
                let name = format!("{name}-seed{}-order{order}", config.seed);
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

/// `METHOD[:SELECTOR][:SETTING=VALUE]..`, over the settings of all. A run with settings of its own is named by
/// them, so that it is not taken for a repetition.
fn variant(all: &Config, text: &str) -> Result<Config> {
    let mut parts = text.split(':');
    let method = parts.next().unwrap_or_default();
    let mut config = Config { method: method.to_owned(), ..all.clone() };
    let own: Vec<&str> = parts.collect();
    for part in &own {
        config = match part.split_once('=') {
            Some((name, value)) => config.set(name, value)?,
            None => Config { selector: (*part).to_owned(), ..config },
        };
    }
    if own.iter().any(|p| p.contains('=')) {
        config.name = format!("{method} ({})", own.join(", "));
    }
    Ok(config)
}

/// The given order, and shuffled ones, no two alike.
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

/// Writes a run's settings, or sees that they are those it was begun with.
fn begin(plan: &Plan, runs: &Path) -> Result<()> {
    let file = runs.join(format!("{}.toml", plan.name));
    let settings = toml::to_string(&plan.config).map_err(|e| Error::new(Code::Value, e.to_string()))?;
    let text = format!("# order: {}\n{settings}", plan.order);
    if !file.exists() {
        return fs::write_atomic(&file, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io("write", e)));
    }
    if fs::read_text(&file)? == text {
        return Ok(());
    }
    Err(Error::new(Code::Value, "the settings or the order differ from those this comparison was begun with")
        .in_file(&file)
        .hint("repeat the command it was begun with, or choose another folder with --out"))
}

fn run(a: &CompareArgs, plan: &Plan, runs: &Path, stop: &AtomicBool) -> Result<Done> {
    let exe = std::env::current_exe().map_err(|e| Error::io("find this program", e))?;
    let file = |ending: &str| -> PathBuf { runs.join(format!("{}.{ending}", plan.name)) };
    let mut command = Command::new(exe);
    command.arg("stream").arg(&a.stream).arg("-m").arg(&a.model).arg("-b").arg(file("cpb"));
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
    // Its table is part of the page; its progress and errors are for people.
    let status = command.stdout(Stdio::null()).status().map_err(|e| Error::io("start a run", e))?;
    match status.code() {
        Some(0) => {
            // States of the trunk and checkpoints: nothing needs them any more.
            let _ = std::fs::remove_dir_all(file("work"));
            Ok(Done::Finished)
        }
        Some(130) => Ok(Done::Stopped),
        _ if stop.load(Ordering::Relaxed) => Ok(Done::Stopped),
        _ => Err(Error::new(Code::Io, format!("the run {} failed ({status})", plan.name))
            .hint("its message stands above; the same command goes on after the runs that are done")),
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
        let all = Config { rank: 4, ..Config::default() };
        let name = |c: &Config| crate::report::name(c);
        let c = variant(&all, "dynamic:ridge").unwrap();
        assert_eq!((c.selector.as_str(), c.rank, name(&c).as_str()), ("ridge", 4, "dynamic (ridge)"));
        let c = variant(&all, "dynamic:ridge:rank=1:lr=1").unwrap();
        assert_eq!((c.rank, c.lr, name(&c).as_str()), (1, 1.0, "dynamic (ridge, rank=1, lr=1)"));
        let c = variant(&all, "lae:lae_experts=online").unwrap();
        assert_eq!((c.lae_experts.as_str(), name(&c).as_str()), ("online", "lae (lae_experts=online)"));
        assert_eq!(variant(&all, "dynamic:params=5000").unwrap().params, "5000");
        for (bad, says) in [("dynamic:speed=1", "no such setting"), ("dynamic:rank=low", "low")] {
            assert!(variant(&all, bad).unwrap_err().to_string().contains(says), "{bad}");
        }
    }
}
