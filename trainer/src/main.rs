//! `conpet-train`: trains modules and a selector for a stream of tasks on a frozen quantized base.

use std::process::ExitCode;

fn main() -> ExitCode {
    conpet_program::run(|stop| conpet_trainer::cli::run(conpet_program::parse(), stop))
}
