//! The two streams of a command, and the choice between tables and JSON.

use crate::escape::{self, AsciiJson};
use crate::exit::Failure;
use crate::table::Table;
use conpet_program::print::{is_closed, written};
use serde::Serialize;
use std::io::Write;

/// Most text written for people, in bytes; a hostile file must not fill a terminal for hours.
const CAP: usize = 1 << 20;

/// Where a command writes.
pub(crate) struct Output<'a> {
    stdout: &'a mut dyn Write,
    stderr: &'a mut dyn Write,
    json: bool,
    text: String,
    full: bool,
    closed: bool,
    warned: Vec<String>,
}

impl<'a> Output<'a> {
    pub(crate) fn new(stdout: &'a mut dyn Write, stderr: &'a mut dyn Write, json: bool) -> Self {
        Self { stdout, stderr, json, text: String::new(), full: false, closed: false, warned: Vec::new() }
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
        self.write(&bytes)
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
        self.write(text.as_bytes())
    }

    /// True if the reader of standard output has gone away.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let result = written(self.stdout.write_all(bytes).and_then(|()| self.stdout.flush()));
        self.closed |= result.as_ref().is_err_and(is_closed);
        Ok(result?)
    }
}
