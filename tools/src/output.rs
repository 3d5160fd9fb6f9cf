//! The two streams of a command, and the choice between tables and JSON.

use crate::escape::{self, AsciiJson};
use crate::exit::{ExitStatus, Failure};
use crate::table::Table;
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// Most text written for people, in bytes; a hostile file must not fill a terminal for hours.
const CAP: usize = 1 << 20;

/// The message of the failure that means "the reader has gone away", as in `| head`.
pub(crate) const CLOSED: &str = "stdout was closed";

/// Where a command writes.
pub(crate) struct Output<'a> {
    stdout: &'a mut dyn Write,
    stderr: &'a mut dyn Write,
    json: bool,
    text: String,
    full: bool,
    warned: Vec<String>,
}

impl<'a> Output<'a> {
    pub(crate) fn new(stdout: &'a mut dyn Write, stderr: &'a mut dyn Write, json: bool) -> Self {
        Self { stdout, stderr, json, text: String::new(), full: false, warned: Vec::new() }
    }

    /// True if `--json` was given: then a command calls [`Output::object`] once and no other.
    pub(crate) fn json(&self) -> bool {
        self.json
    }

    /// Writes the command's result as JSON.
    pub(crate) fn object(&mut self, value: &impl Serialize) -> Result<(), Failure> {
        let mut bytes = Vec::new();
        let mut s = serde_json::Serializer::with_formatter(&mut bytes, AsciiJson::default());
        value.serialize(&mut s).map_err(|e| Failure::usage(format!("cannot write JSON: {e}"), "run without --json"))?;
        bytes.push(b'\n');
        written(self.stdout.write_all(&bytes))
    }

    /// One line for people. The caller has escaped what comes from files.
    pub(crate) fn line(&mut self, line: &str) {
        debug_assert!(!line.contains(|c: char| c.is_control()), "{line:?} was not escaped");
        if self.text.len() + line.len() < CAP {
            self.text += line;
            self.text.push('\n');
        } else if !self.full {
            self.full = true;
            self.text += "... (cut at 1 MiB; --json has the rest)\n";
        }
    }

    /// A name and a value, in two columns.
    pub(crate) fn field(&mut self, name: &str, value: &str) {
        let value = escape::text(value);
        self.line(format!("{name:<10} {value}").trim_end());
    }

    /// A table after an empty line and a heading.
    pub(crate) fn table(&mut self, heading: &str, table: &Table) {
        if !self.text.is_empty() {
            self.line("");
        }
        if !heading.is_empty() {
            self.line(heading);
        }
        table.lines().iter().for_each(|l| self.line(l));
    }

    /// Something worth knowing that is not the result; said once.
    pub(crate) fn warn(&mut self, text: &str) {
        let text = escape::message(text);
        if !self.warned.contains(&text) {
            // If stderr is closed there is nobody left to tell.
            let _ = writeln!(self.stderr, "warning: {text}");
            self.warned.push(text);
        }
    }

    /// Why the command could not go on.
    pub(crate) fn failure(&mut self, f: &Failure) {
        let _ = writeln!(self.stderr, "error: {}\nhint: {}", escape::message(&f.message), escape::message(&f.hint));
    }

    /// Writes the text for people.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        let text = std::mem::take(&mut self.text);
        written(self.stdout.write_all(text.as_bytes()).and_then(|()| self.stdout.flush()))
    }
}

fn written(result: std::io::Result<()>) -> Result<(), Failure> {
    result.map_err(|e| Failure {
        status: ExitStatus::Io,
        message: if e.kind() == ErrorKind::BrokenPipe { CLOSED.into() } else { format!("cannot write to stdout: {e}") },
        hint: "check where the output goes, and its free space".into(),
    })
}
