//! Printing: data to standard output, all else to standard error.
//!
//! What standard error does not take is lost: there is nobody left to tell.

use conpet_formats::{Error, Result};
use std::io::{ErrorKind, Write};

/// Prints a line of data.
///
/// # Errors
/// If standard output does not take it; [`is_closed`] tells a reader that has gone away from a full disk.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout();
    written(writeln!(out, "{text}").and_then(|()| out.flush()))
}

/// Prints an answer piece by piece as it is computed, each at once.
///
/// The first piece that standard output does not take ends it: [`Pieces::print`] says so to whoever
/// computes, [`Pieces::finish`] says why.
#[derive(Debug, Default)]
pub struct Pieces(Option<Error>);

impl Pieces {
    /// Prints a piece; false if it is of no use to compute more.
    pub fn print(&mut self, piece: &str) -> bool {
        let mut out = std::io::stdout();
        self.0 = self.0.take().or_else(|| written(out.write_all(piece.as_bytes()).and_then(|()| out.flush())).err());
        self.0.is_none()
    }

    /// Ends the answer.
    ///
    /// # Errors
    /// As [`print()`], of the first piece that failed.
    pub fn finish(self) -> Result<()> {
        self.0.map_or(Ok(()), Err)
    }
}

/// What became of a write to standard output, in this project's words.
///
/// # Errors
/// If it failed.
pub fn written(result: std::io::Result<()>) -> Result<()> {
    result.map_err(|e| Error::io("write to stdout", e).hint("check where the output goes, and its free space"))
}

/// True if the reader of standard output has gone away, as `head` does: the program should end, and
/// nothing is wrong.
pub fn is_closed(e: &Error) -> bool {
    let source = std::error::Error::source(e).and_then(|s| s.downcast_ref::<std::io::Error>());
    source.is_some_and(|s| s.kind() == ErrorKind::BrokenPipe)
}

/// A line on standard error.
pub fn say(text: &str) {
    say_piece(&format!("{text}\n"));
}

/// Text on standard error that is not a whole line, such as `> ` before what the user types.
pub fn say_piece(text: &str) {
    let mut err = std::io::stderr();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// A warning on standard error.
pub fn warn(text: &str) {
    say(&format!("warning: {text}"));
}

/// An error with its remedy on standard error, as `error: ..` and `hint: ..`.
pub fn complain(e: &Error) {
    say(&format!("error: {e}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_reader_is_told_from_a_full_disk() {
        let failed = |kind: ErrorKind| written(Err(kind.into())).unwrap_err();
        assert!(is_closed(&failed(ErrorKind::BrokenPipe)));
        let full = failed(ErrorKind::StorageFull);
        assert!(!is_closed(&full) && full.exit_code() == 4 && full.brief().starts_with("cannot write to stdout"));
    }
}
