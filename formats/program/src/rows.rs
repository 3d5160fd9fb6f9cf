//! Rows: a text on each line, or an object of JSON on each line.
//!
//! The one reader of rows of all programs. A byte order mark at the beginning and `\r` before a line's end
//! belong to no row, blank lines are none, and every error names the file and the line. A line that cannot
//! be read costs no other line anything: the iterator goes on behind it.

use conpet_formats::{Code, Error, Result};
use serde::Deserialize;
use std::io::{BufRead, Read};
use std::sync::Arc;

/// Longest line, in bytes.
pub const LINE_CAP: usize = 4 << 20;

/// A line that is not blank.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The line without its end.
    pub text: String,
    /// Where it stands.
    pub place: Place,
}

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file.
    Line {
        /// The file's name, or what else the rows come from.
        file: Arc<str>,
        /// From 1; blank lines count.
        line: usize,
    },
    /// On the command line, from 1.
    Argument(usize),
}

impl Place {
    /// The error with this place, unless it already names another.
    pub fn blame(&self, e: Error) -> Error {
        match self {
            Self::Line { file, line } => e.in_file(&**file).in_section(format!("line {line}")),
            Self::Argument(n) => e.in_section(format!("text {n} of the command line")),
        }
    }
}

/// Reads rows.
#[derive(Debug)]
pub struct Rows<R> {
    reader: R,
    file: Arc<str>,
    line: usize,
    done: bool,
}

impl<R: BufRead> Rows<R> {
    /// The rows of `reader`, which errors call `file`.
    pub fn new(reader: R, file: &str) -> Self {
        Self { reader, file: file.into(), line: 0, done: false }
    }

    /// The next line, blank or not; `None` at the end.
    fn line(&mut self) -> Result<Option<String>> {
        let failed = |e| Error::io("read", e);
        let mut bytes = Vec::new();
        // One byte more than the cap and the line's end: enough to see that a line is too long.
        (&mut self.reader).take(LINE_CAP as u64 + 3).read_until(b'\n', &mut bytes).map_err(failed)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        let ended = bytes.pop_if(|b| *b == b'\n').is_some();
        bytes.pop_if(|b| *b == b'\r');
        if bytes.len() > LINE_CAP {
            if !ended {
                self.reader.skip_until(b'\n').map_err(failed)?;
            }
            return Err(Error::new(Code::Cap, format!("a line of more than {LINE_CAP} bytes"))
                .hint("put one text on each line"));
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            Error::new(Code::Text, "the text is not UTF-8")
                .at(e.utf8_error().valid_up_to() as u64)
                .hint("convert it to UTF-8")
        })?;
        Ok(Some(match text.strip_prefix('\u{feff}').filter(|_| self.line == 1) {
            Some(rest) => rest.to_owned(),
            None => text,
        }))
    }
}

impl<R: BufRead> Iterator for Rows<R> {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Result<Row>> {
        while !self.done {
            let line = self.line();
            let place = Place::Line { file: Arc::clone(&self.file), line: self.line };
            match line {
                Ok(None) => self.done = true,
                Ok(Some(text)) if text.trim().is_empty() => {}
                Ok(Some(text)) => return Some(Ok(Row { text, place })),
                // Behind an error of the system there is nothing to read; it stands on no line.
                Err(e) if e.code().exit_code() == 4 => {
                    self.done = true;
                    return Some(Err(e.in_file(&*self.file)));
                }
                Err(e) => return Some(Err(place.blame(e))),
            }
        }
        None
    }
}

/// The keys of an object that is an input; others, such as `label`, are somebody else's.
#[derive(Deserialize)]
struct Input {
    text: Option<String>,
    prompt: Option<String>,
}

impl Row {
    /// The row as an input: the text of a line that is an object of JSON stands under `text` or `prompt`;
    /// any other line is the text itself.
    ///
    /// # Errors
    /// If the line begins as an object does but is none, or has both keys, or neither.
    pub fn input(self) -> Result<Self> {
        if !self.text.trim_start().starts_with('{') {
            return Ok(self);
        }
        let Self { text, place } = self;
        let wrong =
            |code, what: String| place.blame(Error::new(code, what).hint("write {\"text\": ..}, or plain text"));
        let input: Input = serde_json::from_str(&text).map_err(|e| {
            // The line is a document of one line to the parser, and not to the reader.
            let why = e.to_string().replace(" at line 1 column", ", at column");
            wrong(Code::Value, format!("the line begins like JSON but is no row: {why}"))
        })?;
        let text = match (input.text, input.prompt) {
            (Some(text), None) | (None, Some(text)) => text,
            (None, None) => return Err(wrong(Code::Missing, "the JSON object has neither text nor prompt".into())),
            (Some(_), Some(_)) => return Err(wrong(Code::Value, "the JSON object has both text and prompt".into())),
        };
        Ok(Self { text, place })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each row as its line and text, or the code of its error.
    fn read(bytes: &[u8]) -> Vec<String> {
        let shown = |r: Result<Row>| match r.and_then(Row::input) {
            Ok(Row { text, place: Place::Line { line, .. } }) => format!("{line} {text}"),
            Ok(r) => panic!("{r:?} stands in a file"),
            Err(e) => {
                assert_eq!(e.file(), Some("rows.txt"), "{e}");
                format!("{} {}", e.section().unwrap_or_default(), e.code().as_str())
            }
        };
        Rows::new(bytes, "rows.txt").map(shown).collect()
    }

    #[test]
    fn marks_line_ends_and_blank_lines_belong_to_no_row() {
        let rows =
            read("\u{feff}{\"text\":\"a\",\"label\":\"x\"}\r\n\r\n  \n{\"prompt\":\"b\"}\nc \u{feff}d\r\ne".as_bytes());
        assert_eq!(rows, ["1 a", "4 b", "5 c \u{feff}d", "6 e"]);
        assert!(read(b"").is_empty() && read("\u{feff}\n \n".as_bytes()).is_empty());
    }

    #[test]
    fn a_bad_row_costs_no_other_row_anything() {
        let long = [vec![b'x'; LINE_CAP], b"\r\n".to_vec(), vec![b'y'; LINE_CAP + 1], b"\nb\n".to_vec()].concat();
        let rows: Vec<_> = Rows::new(&long[..], "rows.txt").map(|r| r.map(|r| r.text.len())).collect();
        assert!(matches!(rows[..], [Ok(LINE_CAP), Err(_), Ok(1)]), "{rows:?}");
        let rows = read(b"a\n\xff\xfe\n{\"text\":\"b\n{\"text\":3}\n{\"label\":\"c\"}\n{\"text\":\"d\",\"prompt\":\"e\"}\n{\"text\":\"f\",\"text\":\"g\"}\nh");
        let want = ["1 a", "line 2 E_TEXT", "line 3 E_VALUE", "line 4 E_VALUE", "line 5 E_MISSING", "line 6 E_VALUE"];
        assert_eq!(rows[..6], want);
        assert_eq!(rows[6..], ["line 7 E_VALUE", "8 h"]);
    }

    #[test]
    fn an_error_of_the_system_is_the_last() {
        let folder = std::fs::File::open(env!("CARGO_MANIFEST_DIR")).unwrap();
        let rows: Vec<_> = Rows::new(std::io::BufReader::new(folder), "a folder").collect();
        assert!(matches!(&rows[..], [Err(e)] if e.code() == Code::Io && e.file() == Some("a folder")), "{rows:?}");
    }
}
