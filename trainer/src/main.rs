//! `conpet-train`: teaches a frozen quantized base a stream of tasks.

use clap::Parser;
use conpet_trainer::cli::{self, Cli};
use conpet_trainer::output::{Done, complain};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

static STOP: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    let args = Cli::parse();
    // The first Ctrl-C stops after the step under way, with a checkpoint; the second at once.
    let _ = ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::abort();
        }
    });
    match cli::run(args, &STOP) {
        Ok(Done::Finished) => ExitCode::SUCCESS,
        Ok(Done::Stopped) => ExitCode::from(130),
        Err(e) => {
            complain(&e);
            ExitCode::from(e.exit_code())
        }
    }
}
