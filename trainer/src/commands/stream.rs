//! `stream`: learns a stream of tasks.

use super::engine;
use super::settings::SettingsArgs;
use crate::config::Config;
use crate::progress::Bar;
use crate::report::{self, Origin, Report};
use crate::run::Run;
use crate::stream;
use conpet_formats::{Code, Error, Result};
use conpet_program::print::{print, say};
use conpet_program::{BaseArgs, ExitStatus};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Arguments of `stream`.
#[derive(Debug, clap::Args)]
#[command(mut_arg("model", |a| a.required_unless_present("print_config")))]
pub struct Args {
    /// The stream's folder.
    #[arg(required_unless_present = "print_config")]
    pub stream: Option<PathBuf>,
    /// The base.
    #[command(flatten)]
    pub base: BaseArgs,
    /// The bundle to write.
    #[arg(short = 'b', long = "bundle", default_value = "skills.cpb")]
    pub bundle: PathBuf,
    /// Learn only the first N tasks.
    #[arg(long)]
    pub tasks: Option<usize>,
    /// Learn the tasks in this order: their names, comma-separated.
    #[arg(long, value_name = "NAME,..")]
    pub order: Option<String>,
    /// Inputs of no task, as JSON lines; the report says how well the selector refuses them
    /// [default: out_of_scope/test.jsonl of the stream, if it is there].
    #[arg(long, value_name = "FILE")]
    pub ood: Option<PathBuf>,
    /// Continue a run that was stopped.
    #[arg(long)]
    pub resume: bool,
    /// A named group of settings: conpet-paper (dynamic ConPET as published). A file and flags override it.
    #[arg(long)]
    pub preset: Option<String>,
    /// Print every setting as TOML and stop.
    #[arg(long)]
    pub print_config: bool,
    /// Where to write report.json and report.html [default: beside the bundle, as NAME.report].
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Learns the stream into a bundle and writes the report.
///
/// # Errors
/// The command's error, which names the file, the place, the value and the remedy.
pub fn run(a: Args, stop: &AtomicBool) -> Result<ExitStatus> {
    let preset = a.preset.as_deref().map_or_else(|| Ok(Config::default()), Config::preset)?;
    let (config, _) = a.settings.over(preset)?;
    if a.print_config {
        print(&config.toml()?)?;
        return Ok(ExitStatus::Success);
    }
    let Some(path) = a.stream else {
        return Err(Error::new(Code::Missing, "a stream is needed"));
    };
    let mut tasks = stream::open(&path)?;
    tasks.truncate(a.tasks.unwrap_or(usize::MAX).max(1));
    if let Some(names) = &a.order {
        stream::reorder(&mut tasks, names)?;
    }
    let strangers = stream::out_of_scope(&path, a.ood.as_deref())?;
    let e = engine::open(&a.base.path()?, config.run.threads)?;
    let trunk = config.check(&e.base.spec)?.trunk;
    let rows: usize = tasks.iter().map(|t| t.train.len()).sum();
    say(&format!(
        "{} tasks, {rows} training rows; base {} ({} layers, trunk {trunk}); {} threads, {} kernels",
        tasks.len(),
        e.base.spec.name,
        e.base.spec.n_layer,
        e.cpu().threads.n(),
        e.cpu().kernels.name()
    ));
    if config.method()?.traits.fixed {
        let steps = config.services.budget();
        let rows = steps * config.services.training.batch as u64;
        say(&format!(
            "budget of each task after the first: {steps} steps on mixtures of new and old rows, {rows} rows"
        ));
    }
    say(&format!("settings: {}", config.toml()?.replace('\n', ", ")));
    let mut bar = Bar::new();
    let outcome = Run::new(config, &e, tasks, &a.bundle, stop, |event| bar.show(&event))?
        .with_strangers(strangers)
        .stream(a.resume)?;
    bar.clear();
    let Some(method) = outcome else {
        say(&format!("stopped; continue with the same command and --resume ({})", a.bundle.display()));
        return Ok(ExitStatus::Stopped);
    };
    let dir = a.report.unwrap_or_else(|| a.bundle.with_extension("report"));
    let report = Report::new(Origin::here(&e)).with(vec![method]);
    report::write_page(&report, &dir)?;
    print(report.text().trim_start())?;
    say(&format!("bundle {}, report {}", a.bundle.display(), dir.join("report.html").display()));
    Ok(ExitStatus::Success)
}
