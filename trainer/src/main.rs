//! `conpet-train`: teaches a frozen quantized base a stream of tasks.

use std::process::ExitCode;

fn main() -> ExitCode {
    conpet_program::run(|stop| {
        let cli = conpet_program::parse();
        // The first signal stops after the step under way, with a checkpoint; the second at once.
        let _work = stop.at_work();
        conpet_trainer::cli::run(cli, stop.flag())
    })
}
