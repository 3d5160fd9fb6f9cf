//! Exit codes.

use conpet_formats::Code;
use std::process::ExitCode;

/// How a program ended. The numbers are stable; `--help` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ExitStatus {
    /// Everything asked for was done, and nothing is wrong with any file.
    Success = 0,
    /// A file is damaged, or some of the input is bad; what could be done was done.
    Damaged = 1,
    /// The command line is wrong, a file is of another kind, or it needs a newer release.
    Usage = 2,
    /// The base is not the one the bundle was trained on.
    BaseMismatch = 3,
    /// The operating system refused to read or write.
    Io = 4,
    /// A signal stopped the work: 128 and the signal's number, so 130 for Ctrl-C and 143 for SIGTERM.
    Stopped = 130,
}

/// The list that `--help` ends with.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done, and nothing is wrong
  1    damaged or bad input; what could be done was done
  2    wrong command line, unsupported, or another kind of file
  3    another base than the one the bundle was trained on
  4    the operating system refused to read or write
  130  stopped by Ctrl-C (SIGINT); 143 by SIGTERM";

impl ExitStatus {
    /// The code of a program that has met this signal, if any.
    pub(crate) fn code(self, signal: Option<u8>) -> ExitCode {
        match (self, signal) {
            (Self::Stopped, Some(signal)) => ExitCode::from(128 + signal),
            _ => ExitCode::from(self as u8),
        }
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
