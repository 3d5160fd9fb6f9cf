//! The program's own manners.

#[path = "../../tests/shared/manners.rs"]
mod manners;

use manners::Program;

const PROGRAM: Program = Program { path: env!("CARGO_BIN_EXE_conpet-train"), command: "stream" };

#[test]
fn help_and_version_go_to_standard_output() {
    PROGRAM.help_and_version_go_to_standard_output();
}

#[test]
fn bad_command_lines_exit_with_2() {
    PROGRAM.bad_command_lines_exit_with_2();
}

#[test]
fn missing_and_wrong_files_are_named_with_a_remedy() {
    PROGRAM.missing_and_wrong_files_are_named_with_a_remedy();
}
