//! The commands of `conpet-run`, one file each. Data goes to standard output, everything else to standard error.

mod bench;
mod chat;
mod classify;
mod embed;
mod generate;
mod perplexity;
mod route;
mod tokenize;

use crate::cli::InputArgs;
use crate::error::Result;
use clap::{Parser, Subcommand};
use conpet_program::{EXIT_CODES, ExitStatus, Stop};

/// Runs a frozen quantized base and a bundle of modules, choosing the module from the input.
#[derive(Debug, Parser)]
#[command(name = "conpet-run", version, about, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Answer texts with labels.
    Classify(classify::ClassifyArgs),
    /// Answer texts with text.
    Generate(generate::GenerateArgs),
    /// Talk, turn by turn.
    Chat(chat::ChatArgs),
    /// Turn texts into vectors of unit length.
    Embed(embed::EmbedArgs),
    /// Show how the selector chooses, without running a module.
    Route(InputArgs),
    /// Measure speed and memory.
    Bench(bench::BenchArgs),
    /// Measure how well a text is predicted, as llama-perplexity does.
    Perplexity(perplexity::PerplexityArgs),
    /// Show the tokens of a text.
    Tokenize(tokenize::TokenizeArgs),
}

/// Runs a command, which checks `stop` while it works.
///
/// # Errors
/// The command's error, which names the file, the place, the value and the remedy.
pub fn run(cli: Cli, stop: &Stop) -> Result<ExitStatus> {
    match cli.command {
        Command::Classify(a) => classify::run(&a, stop),
        Command::Generate(a) => generate::run(&a, stop),
        Command::Chat(a) => chat::run(&a, stop),
        Command::Embed(a) => embed::run(&a, stop),
        Command::Route(a) => route::run(&a, stop),
        Command::Bench(a) => bench::run(&a),
        Command::Perplexity(a) => perplexity::run(&a, stop),
        Command::Tokenize(a) => tokenize::run(&a),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
