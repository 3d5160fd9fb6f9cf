//! `conpet-train`: trains modules and a selector for a stream of tasks on a frozen quantized base.

use std::process::ExitCode;

fn main() -> ExitCode {
    conpet_program::run(|stop| {
        let cli = conpet_program::parse();
        // The first signal stops after the current step, with a checkpoint; the second stops at once.
        let _work = stop.at_work();
        conpet_trainer::cli::run(cli, stop.flag())
    })
}
