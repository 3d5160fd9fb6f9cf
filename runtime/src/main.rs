//! `conpet-run`: runs a base with modules that are chosen from the input.

use conpet_runtime::commands;
use std::process::ExitCode;

fn main() -> ExitCode {
    conpet_program::run(|stop| commands::run(conpet_program::parse(), stop))
}
