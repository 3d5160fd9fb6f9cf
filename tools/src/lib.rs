//! `conpet-inspect`: shows, checks, compares and exports bundles.
//!
//! [`run`] is the whole program with its two output streams as arguments, so that tests call it
//! in-process. A command lives in `commands/<verb>.rs`; what they share stands beside it:
//! [`cli`] (the arguments), `exit` (failures), `output` (the two streams and
//! `--json`), `view` (one stage of a bundle, damaged or not), `part` (names of sections),
//! [`escape`] and `table` (text that is safe to print).

pub mod cli;
mod commands;
mod convert;
pub mod escape;
mod exit;
mod file_type;
mod output;
mod part;
mod rows;
mod table;
mod view;

pub use conpet_program::ExitStatus;

use clap::Parser;
use conpet_program::print::{is_closed, written};
use conpet_program::spelled;
use output::Output;
use std::ffi::OsString;
use std::io::Write;

/// Runs one command line; `args` begins with the program's name. Data goes to `stdout`, all else
/// to `stderr`.
pub fn run(args: impl IntoIterator<Item = OsString>, stdout: &mut dyn Write, stderr: &mut dyn Write) -> ExitStatus {
    let cli = match cli::Cli::try_parse_from(cli::with_default_command(spelled(args))) {
        Ok(cli) => cli,
        Err(e) => return usage(e, stdout, stderr),
    };
    let mut out = Output::new(stdout, stderr, cli.json);
    let result = commands::run(&cli.command, &mut out).and_then(|status| out.finish().map(|()| status));
    match result {
        Ok(status) => status,
        // The reader has gone away, as in `| head`.
        Err(_) if out.is_closed() => ExitStatus::Success,
        Err(failure) => {
            // What was printed before the failure is worth having too.
            let _ = out.finish();
            out.failure(&failure);
            failure.status
        }
    }
}

/// `--help` and `--version` are data; everything else clap says is a usage error.
fn usage(e: clap::Error, stdout: &mut dyn Write, stderr: &mut dyn Write) -> ExitStatus {
    let e = conpet_program::explain::<cli::Cli>(e);
    let text = e.render().to_string().replace("For more information, try", "hint: for more information, try");
    let text = escape::lines(&text);
    if e.use_stderr() {
        // If stderr is closed there is nobody left to tell.
        let _ = write!(stderr, "{text}");
        ExitStatus::Usage
    } else {
        match written(write!(stdout, "{text}").and_then(|()| stdout.flush())) {
            Err(e) if !is_closed(&e) => ExitStatus::Io,
            _ => ExitStatus::Success,
        }
    }
}
