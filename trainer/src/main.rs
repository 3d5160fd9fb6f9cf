//! `conpet-train`: teaches a frozen quantized base a stream of tasks.

use conpet_program::ExitStatus;
use conpet_trainer::commands::{self, Done};
use std::process::ExitCode;

fn main() -> ExitCode {
    conpet_program::run(|stop| {
        let cli = conpet_program::parse();
        // The first signal stops after the step under way, with a checkpoint; the second at once.
        let _work = stop.at_work();
        Ok(match commands::run(cli, stop.flag())? {
            Done::Finished => ExitStatus::Success,
            Done::Stopped => ExitStatus::Stopped,
        })
    })
}
