//! `add`: learns one more task onto a bundle.

use super::engine;
use super::settings::SettingsArgs;
use crate::config::Config;
use crate::progress::Bar;
use crate::run::Run;
use crate::run::add::{inherited, refuse_conflicts};
use crate::settings::Group;
use crate::stream;
use conpet_formats::Result;
use conpet_formats::bundle::Bundle;
use conpet_program::print::{print, say};
use conpet_program::{BaseArgs, ExitStatus};
use conpet_runtime::skills::Skills;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Settings that only say how a stream is scored and reported.
const OF_STREAMS: [&str; 2] = ["score", "name"];

/// Arguments of `add`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The task's folder, with train.jsonl, valid.jsonl and test.jsonl.
    pub task: PathBuf,
    /// The base.
    #[command(flatten)]
    pub base: BaseArgs,
    /// The bundle to add to.
    #[arg(short = 'b', long = "bundle")]
    pub bundle: PathBuf,
    /// The settings; method, trunk and selector are those of the bundle.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Learns the task and appends its stage.
///
/// # Errors
/// The command's error, which names the file, the place, the value and the remedy.
pub fn run(a: Args, stop: &AtomicBool) -> Result<ExitStatus> {
    let (config, given) = a.settings.over(Config::default())?;
    let bundle = Bundle::open(&a.bundle)?;
    let task = stream::open_task(&a.task)?;
    let e = engine::open(&a.base.path()?, config.run.threads)?;
    refuse_conflicts(&given.all(), &config, &bundle, &e.base.spec)?;
    let config = inherited(config, &bundle, &e.base.spec)?;
    let in_effect: Vec<&str> = config.in_effect().into_iter().filter(|k| !OF_STREAMS.contains(k)).collect();
    given.refuse_without_effect("add", &in_effect, &config)?;
    // A bundle of another base must fail before anything is trained.
    Skills::new(bundle, &e.base).map_err(|e| e.in_file(&a.bundle))?;
    let name = task.name.clone();
    let mut bar = Bar::new();
    let outcome = Run::onto(config, &e, task, &a.bundle, stop, |event| bar.show(&event))?.add()?;
    bar.clear();
    let Some(s) = outcome else {
        say("stopped; the same command continues from the last checkpoint");
        return Ok(ExitStatus::Stopped);
    };
    let (right, rows): (usize, usize) = (s.right.iter().sum(), s.rows.iter().sum());
    print(&format!("added {name}: {right} of {rows} test rows right, chosen among {} tasks", s.rows.len()))?;
    Ok(ExitStatus::Success)
}
