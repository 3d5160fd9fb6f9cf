//! Exit codes, and what ends a command.

use conpet_formats::{Code, Error};
use std::process::ExitCode;

/// How a command ended. The numbers are stable; `--help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ExitStatus {
    /// Everything asked for was done, and nothing is wrong with the file.
    Success = 0,
    /// The file is damaged; what still verifies was printed.
    Damaged = 1,
    /// The command line is wrong, the file is of another kind, or it needs a newer release.
    Usage = 2,
    /// The base is not the one the bundle was trained on.
    BaseMismatch = 3,
    /// The operating system refused to read or write.
    Io = 4,
}

/// The table printed by `--help`.
pub const HELP: &str = "\
Exit codes:
  0  done, nothing wrong
  1  the file is damaged; what still verifies was printed
  2  wrong command line, another kind of file, or one that needs a newer release
  3  the base is not the one the bundle was trained on
  4  the operating system refused to read or write";

impl From<ExitStatus> for ExitCode {
    fn from(s: ExitStatus) -> Self {
        Self::from(s as u8)
    }
}

impl From<Code> for ExitStatus {
    fn from(code: Code) -> Self {
        match code.exit_code() {
            4 => Self::Io,
            3 => Self::BaseMismatch,
            // Another kind of file altogether is a mistyped command, not a damaged file.
            2 => Self::Usage,
            _ => Self::Damaged,
        }
    }
}

/// Why a command could not go on: printed as `error: ...` and `hint: ...`.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) status: ExitStatus,
    pub(crate) message: String,
    pub(crate) hint: String,
}

impl Failure {
    /// Something the caller can put right by asking differently.
    pub(crate) fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { status: ExitStatus::Usage, message: message.into(), hint: hint.into() }
    }
}

/// A file that must not exist does: the command line is wrong, not the file.
pub(crate) fn creating(e: Error) -> Failure {
    let taken = e.code() == Code::Duplicate;
    let failure = Failure::from(e);
    if taken { Failure { status: ExitStatus::Usage, ..failure } } else { failure }
}

impl From<Error> for Failure {
    fn from(e: Error) -> Self {
        Self { status: ExitStatus::from(e.code()), message: e.brief(), hint: e.remedy().to_owned() }
    }
}
