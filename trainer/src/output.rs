//! How the program ends and what it prints: data to standard output, all else to standard error.

use conpet_formats::{Error, Result};
use std::io::Write;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// It did all it should.
    Finished,
    /// Ctrl-C; `--resume` goes on.
    Stopped,
}

/// Prints an error with its hint, as `error: ...` and `hint: ...`.
pub fn complain(e: &Error) {
    let _ = writeln!(std::io::stderr(), "error: {e}");
}

/// Tells people something.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints a result.
pub(crate) fn print(text: &str) -> Result<()> {
    writeln!(std::io::stdout(), "{text}").map_err(|e| Error::io("print", e))
}
