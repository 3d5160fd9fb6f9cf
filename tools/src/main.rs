//! `conpet-inspect`: see `conpet-inspect --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    conpet_program::run(|_| {
        Ok(conpet_tools::run(std::env::args_os(), &mut std::io::stdout().lock(), &mut std::io::stderr().lock()))
    })
}
