//! `conpet-train`: teaches a frozen quantized base a stream of tasks.

use std::process::ExitCode;

fn main() -> ExitCode {
    conpet_program::run(|stop| conpet_trainer::cli::run(conpet_program::parse(), stop))
}
