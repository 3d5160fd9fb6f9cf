//! `conpet-run`: answers on a small box, with modules chosen from the input.

use clap::Parser;
use conpet_runtime::cli::Cli;
use conpet_runtime::commands;
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The first Ctrl-C ends the answer under way, the second the process.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::abort();
        }
    });
    match commands::run(cli, &STOP) {
        Ok(()) => ExitCode::from(if STOP.load(Ordering::Relaxed) { 130 } else { 0 }),
        Err(e) => {
            let _ = writeln!(std::io::stderr(), "error: {e}");
            ExitCode::from(e.exit_code())
        }
    }
}
