//! The command line of `conpet-train`.

use crate::config::Flags;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Teaches a frozen quantized base a stream of tasks, into one bundle.
#[derive(Debug, Parser)]
#[command(
    name = "conpet-train",
    version,
    about,
    after_help = "Exit codes: 0 done, 1 bad input, 2 bad command line or unsupported, 3 another base than the bundle's, 4 the system refused, 130 stopped by Ctrl-C (go on with --resume)."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Learn a stream of tasks: a folder with a folder for each task, and stream.json for the order.
    Stream(Box<StreamArgs>),
    /// Learn one more task onto an existing bundle.
    Add(Box<AddArgs>),
    /// Score a bundle on the test rows of a stream, without training.
    Eval(EvalArgs),
    /// Learn a stream by several methods, with several seeds and orders of the tasks, into one page.
    Compare(Box<CompareArgs>),
    /// Compare features for the selector on the validation rows, without training.
    Probe(ProbeArgs),
    /// Train one task (or a few) with several PET kinds at several sizes: accuracy against trainable numbers.
    Sweep(Box<SweepArgs>),
    /// Join report.json files of several runs on one stream into one page.
    Report(ReportArgs),
    /// Write a tiny random base: for trying things without a download.
    TinyBase(TinyArgs),
}

/// Arguments of `stream`.
#[derive(Debug, clap::Args)]
pub struct StreamArgs {
    /// The stream's folder.
    #[arg(required_unless_present = "print_config")]
    pub stream: Option<PathBuf>,
    /// The base, a GGUF file.
    #[arg(short = 'm', long = "model", required_unless_present = "print_config")]
    pub model: Option<PathBuf>,
    /// The bundle to write.
    #[arg(short = 'b', long = "bundle", default_value = "skills.cpb")]
    pub bundle: PathBuf,
    /// Learn only the first N tasks.
    #[arg(long)]
    pub tasks: Option<usize>,
    /// Learn the tasks in this order: their names, comma-separated.
    #[arg(long, value_name = "NAME,..")]
    pub order: Option<String>,
    /// Inputs of no task, as JSON lines: the report says how well they are noticed [default: out_of_scope/test.jsonl of the stream, if it is there].
    #[arg(long, value_name = "FILE")]
    pub ood: Option<PathBuf>,
    /// Go on with a run that was stopped.
    #[arg(long)]
    pub resume: bool,
    /// Settings that belong together: conpet-paper (dynamic ConPET as published). A file and flags override them.
    #[arg(long)]
    pub preset: Option<String>,
    /// Settings as TOML; flags override them.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Print every setting as TOML and stop.
    #[arg(long)]
    pub print_config: bool,
    /// Where to write report.json and report.html [default: beside the bundle, as NAME.report].
    #[arg(long)]
    pub report: Option<PathBuf>,
    /// The settings.
    #[command(flatten)]
    pub settings: Flags,
}

/// Arguments of `add`.
#[derive(Debug, clap::Args)]
pub struct AddArgs {
    /// The task's folder, with train.jsonl, valid.jsonl and test.jsonl.
    pub task: PathBuf,
    /// The base, a GGUF file.
    #[arg(short = 'm', long = "model")]
    pub model: PathBuf,
    /// The bundle to add to.
    #[arg(short = 'b', long = "bundle")]
    pub bundle: PathBuf,
    /// Settings as TOML; flags override them.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The settings; method, selector, trunk and features follow the bundle.
    #[command(flatten)]
    pub settings: Flags,
}

/// Arguments of `eval`.
#[derive(Debug, clap::Args)]
pub struct EvalArgs {
    /// The stream's folder.
    pub stream: PathBuf,
    /// The base, a GGUF file.
    #[arg(short = 'm', long = "model")]
    pub model: PathBuf,
    /// The bundle.
    #[arg(short = 'b', long = "bundle")]
    pub bundle: PathBuf,
    /// Inputs of no task, as JSON lines [default: out_of_scope/test.jsonl of the stream, if it is there].
    #[arg(long, value_name = "FILE")]
    pub ood: Option<PathBuf>,
    /// Score this stage rather than the newest.
    #[arg(long)]
    pub stage: Option<u64>,
    /// Worker threads; 0 is one for each processor.
    #[arg(short = 't', long, default_value_t = 0)]
    pub threads: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `compare`.
#[derive(Debug, clap::Args)]
pub struct CompareArgs {
    /// The stream's folder.
    pub stream: PathBuf,
    /// The base, a GGUF file.
    #[arg(short = 'm', long = "model")]
    pub model: PathBuf,
    /// Methods, comma-separated; METHOD:SELECTOR sets the selector too, as in dynamic:ridge, and METHOD:SETTING=VALUE any setting, as in lae:lae_experts=online (names as in --print-config).
    #[arg(long, value_delimiter = ',', required = true, value_name = "METHOD[:SELECTOR][:SETTING=VALUE],..")]
    pub methods: Vec<String>,
    /// Runs of each method and order, with seeds --seed, --seed + 1, ...
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// Orders of the tasks: the stream's own (or --order), then shuffled ones, always the same.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub orders: u64,
    /// The first order: the tasks' names, comma-separated.
    #[arg(long, value_name = "NAME,..")]
    pub order: Option<String>,
    /// Folder for report.json, report.html and the runs; what is there already is not run again.
    #[arg(short = 'o', long = "out")]
    pub out: PathBuf,
    /// Learn only the first N tasks of the stream's own order.
    #[arg(long)]
    pub tasks: Option<usize>,
    /// Inputs of no task, as JSON lines [default: out_of_scope/test.jsonl of the stream, if it is there].
    #[arg(long, value_name = "FILE")]
    pub ood: Option<PathBuf>,
    /// Settings of all runs as TOML; flags override them.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The settings of all runs.
    #[command(flatten)]
    pub settings: Flags,
}

/// Arguments of `probe`.
#[derive(Debug, clap::Args)]
pub struct ProbeArgs {
    /// The stream's folder.
    pub stream: PathBuf,
    /// The base, a GGUF file.
    #[arg(short = 'm', long = "model")]
    pub model: PathBuf,
    /// A feature to try, as --selector-feature takes it; may be given several times.
    #[arg(short = 'f', long = "feature", required = true)]
    pub features: Vec<String>,
    /// Shrinkage of the covariance; may be given several times.
    #[arg(long, default_values_t = [0.05])]
    pub shrinkage: Vec<f64>,
    /// Weight of the token n-grams beside the feature; may be given several times.
    #[arg(long, default_values_t = [0.0, 2.0])]
    pub ngram_weight: Vec<f64>,
    /// Longest row, in tokens.
    #[arg(long, default_value_t = 256)]
    pub max_len: usize,
    /// Most training rows of each class; 0 keeps all.
    #[arg(long, default_value_t = 0)]
    pub subset: usize,
    /// Worker threads; 0 is one for each processor.
    #[arg(short = 't', long, default_value_t = 0)]
    pub threads: usize,
    /// Print JSON, a line for each feature.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `sweep`.
#[derive(Debug, clap::Args)]
pub struct SweepArgs {
    /// The stream's folder; its tasks must be answered by labels.
    pub stream: PathBuf,
    /// The base, a GGUF file.
    #[arg(short = 'm', long = "model")]
    pub model: PathBuf,
    /// A task to train on, by name; may be given several times [default: the first].
    #[arg(long = "task")]
    pub tasks: Vec<String>,
    /// A PET kind, as --pet takes it; may be given several times [default: lora, adapter, prefix, bias, ia3, and sparse by each rule].
    #[arg(long = "kind")]
    pub kinds: Vec<String>,
    /// Trainable numbers of a module, as --params takes them, comma-separated.
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
    /// Go on with a sweep that was stopped.
    #[arg(long)]
    pub resume: bool,
    /// Settings as TOML; flags override them.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// The settings; --pet, --params, --lr, --method and --selector have no effect here.
    #[command(flatten)]
    pub settings: Flags,
}

/// Arguments of `report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// report.json files.
    #[arg(required = true)]
    pub reports: Vec<PathBuf>,
    /// Folder for the joined report.json and report.html.
    #[arg(short = 'o', long = "out")]
    pub out: PathBuf,
}

/// Arguments of `tiny-base`.
#[derive(Debug, clap::Args)]
pub struct TinyArgs {
    /// The GGUF to write.
    pub out: PathBuf,
    /// Seed of its weights.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}
