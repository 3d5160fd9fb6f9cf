//! `conpet-train`: teaches a frozen quantized base a stream of tasks.

use clap::Parser;
use conpet_trainer::cli::Cli;
use conpet_trainer::commands;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let cli = Cli::parse();
    // The first Ctrl-C stops after the step under way, with a checkpoint; the second at once.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::abort();
        }
    });
    match commands::run(cli, &STOP) {
        Ok(commands::Done::Finished) => ExitCode::SUCCESS,
        Ok(commands::Done::Stopped) => ExitCode::from(130),
        Err(e) => {
            commands::complain(&e);
            ExitCode::from(e.exit_code())
        }
    }
}
