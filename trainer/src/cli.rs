//! The command line of `conpet-train`: the list of its commands.

use crate::commands::{add, compare, eval, probe, report, stream, sweep, tiny_base};
use clap::{Parser, Subcommand};
use conpet_formats::Result;
use conpet_program::{EXIT_CODES, ExitStatus, Stop};

/// Trains PET modules and a selector for a stream of tasks on a frozen quantized base, into one bundle.
#[derive(Debug, Parser)]
#[command(
    name = "conpet-train",
    version,
    about,
    after_help = EXIT_CODES
)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Learn a stream of tasks: a folder with a folder for each task, and stream.json for the order.
    Stream(Box<stream::Args>),
    /// Learn one more task onto an existing bundle.
    Add(Box<add::Args>),
    /// Score a bundle on the test rows of a stream, without training.
    Eval(eval::Args),
    /// Learn a stream by several methods, with several seeds and orders of the tasks, and report them on one page.
    Compare(Box<compare::Args>),
    /// Compare features for the selector on the validation rows, without training.
    Probe(probe::Args),
    /// Train one task (or a few) with several PET kinds at several sizes: accuracy against trainable parameters.
    Sweep(Box<sweep::Args>),
    /// Join report.json files of several runs on one stream into one page.
    Report(report::Args),
    /// Write a tiny random base, to try things without a download.
    TinyBase(tiny_base::Args),
}

/// Runs a command.
///
/// # Errors
/// Names the file, the place, the value and the remedy.
pub fn run(cli: Cli, stop: &Stop) -> Result<ExitStatus> {
    // Where training is under way, the first signal stops after the step, with a checkpoint; elsewhere it
    // ends the program.
    let learns = matches!(cli.command, Command::Stream(_) | Command::Add(_) | Command::Compare(_) | Command::Sweep(_));
    let _work = learns.then(|| stop.at_work());
    match cli.command {
        Command::Stream(a) => stream::run(*a, stop.flag()),
        Command::Add(a) => add::run(*a, stop.flag()),
        Command::Eval(a) => eval::run(&a),
        Command::Compare(a) => compare::run(*a, stop.flag()),
        Command::Probe(a) => probe::run(&a),
        Command::Sweep(a) => sweep::run(*a, stop.flag()),
        Command::Report(a) => report::run(&a),
        Command::TinyBase(a) => tiny_base::run(&a),
    }
}
