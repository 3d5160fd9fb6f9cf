//! `sweep`: PET kinds at several sizes.

use super::engine;
use super::settings::SettingsArgs;
use crate::config::Config;
use crate::progress::Bar;
use crate::report::Origin;
use crate::report::sweep::Sweep;
use crate::stream;
use crate::sweep::{DEFAULT_KINDS, Wanted, settings_in_effect, sweep};
use conpet_formats::{Code, Error, Result};
use conpet_program::print::{print, say};
use conpet_program::{BaseArgs, ExitStatus};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

/// Arguments of `sweep`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The stream's folder; its tasks must be classification tasks.
    pub stream: PathBuf,
    /// The base.
    #[command(flatten)]
    pub base: BaseArgs,
    /// A task to train on, by name; may be given several times [default: the first].
    #[arg(long = "task")]
    pub tasks: Vec<String>,
    /// A PET kind, as --pet takes it; may be given several times [default: lora, adapter, prefix, bias, ia3, and sparse by each rule].
    #[arg(long = "kind")]
    pub kinds: Vec<String>,
    /// Numbers of trainable parameters, each as --params takes it, comma-separated.
    #[arg(long, value_delimiter = ',', default_values = ["1e-5", "1e-4", "1e-3", "1e-2"])]
    pub sizes: Vec<String>,
    /// Peak learning rates to choose from on the validation rows, comma-separated.
    #[arg(long, value_delimiter = ',', default_values_t = [1e-3, 3e-3, 1e-2])]
    pub rates: Vec<f64>,
    /// Seeds to average over, from --seed on.
    #[arg(long, default_value_t = 1)]
    pub seeds: u64,
    /// Folder for sweep.json and sweep.html.
    #[arg(short = 'o', long = "out", default_value = "sweep")]
    pub out: PathBuf,
    /// Continue a sweep that was stopped.
    #[arg(long)]
    pub resume: bool,
    /// The settings. Those of methods and selectors, and --pet, --params and --lr, are not accepted here.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Trains and scores every kind at every size.
///
/// # Errors
/// The command's error, which names the file, the place, the value and the remedy.
pub fn run(a: Args, stop: &AtomicBool) -> Result<ExitStatus> {
    let (config, given) = a.settings.over(Config::default())?;
    given.refuse_without_effect("sweep", &settings_in_effect(), &config)?;
    let mut tasks = stream::open(&a.stream)?;
    if let Some(name) = a.tasks.iter().find(|n| !tasks.iter().any(|t| t.name == **n)) {
        let known: Vec<_> = tasks.iter().map(|t| t.name.as_str()).collect();
        return Err(Error::new(Code::Missing, format!("the stream has no task {name:?}"))
            .in_file(&a.stream)
            .hint(format!("it has {}", known.join(", "))));
    }
    let first = tasks[0].name.clone();
    tasks.retain(|t| if a.tasks.is_empty() { t.name == first } else { a.tasks.contains(&t.name) });
    let e = engine::open(&a.base.path()?, config.run.threads)?;
    let kinds = if a.kinds.is_empty() { DEFAULT_KINDS.map(String::from).to_vec() } else { a.kinds };
    let wanted = Wanted { kinds, sizes: a.sizes, rates: a.rates, seeds: a.seeds.max(1) };
    let head = Sweep { origin: Origin::here(&e), ..Sweep::default() };
    let mut bar = Bar::new();
    let done = sweep(&e, &config, &tasks, &wanted, head, (&a.out, a.resume), stop, |event| bar.show(&event))?;
    bar.clear();
    let Some(result) = done else {
        say(&format!("stopped; continue with the same command and --resume ({})", a.out.display()));
        return Ok(ExitStatus::Stopped);
    };
    print(result.text().trim_end())?;
    say(&format!("{}", a.out.join("sweep.html").display()));
    Ok(ExitStatus::Success)
}
