//! Text from files, made safe to print.
//!
//! A label or a metadata value can hold terminal commands, line breaks, or characters that turn
//! the direction of text. People see those as `\u{1b}`; machines get them as JSON escapes, lossless.

/// Longest text shown to people, in characters.
pub const SHOWN: usize = 200;

/// One line: nothing but printable characters, at most [`SHOWN`] of the original's.
pub fn text(s: &str) -> String {
    clip(s, SHOWN)
}

/// A message of one line. It may hold several names, and names quoted by Rust's `{:?}`, so it may
/// be longer than [`SHOWN`] and its backslashes stay single.
pub fn message(s: &str) -> String {
    s.split('\\').map(|piece| clip(piece, 2000)).collect::<Vec<_>>().join("\\")
}

/// As [`text`], but not cut: a path that is cut short helps nobody, and the user typed it.
pub fn path(s: &str) -> String {
    clip(s, usize::MAX)
}

/// Several lines, each made safe.
pub fn lines(s: &str) -> String {
    s.split_inclusive('\n')
        .map(|l| match l.strip_suffix('\n') {
            Some(l) => path(l) + "\n",
            None => path(l),
        })
        .collect()
}

fn clip(s: &str, shown: usize) -> String {
    let mut out = String::with_capacity(s.len().min(shown));
    let end = s.char_indices().nth(shown).map_or(s.len(), |(i, _)| i);
    // Rust's own escapes cover all that Unicode calls control, format, private, unassigned or
    // space other than ' '. Quotes are harmless here and would only look odd escaped.
    for piece in s[..end].split_inclusive(['"', '\'']) {
        let body = piece.trim_end_matches(['"', '\'']);
        out.extend(body.escape_debug());
        out += &piece[body.len()..];
    }
    if end < s.len() {
        out += &format!("... ({} more characters)", s[end..].chars().count());
    }
    out
}

/// A serde_json formatter that writes nothing but printable ASCII within strings.
#[derive(Debug, Default)]
pub(crate) struct AsciiJson(serde_json::ser::PrettyFormatter<'static>);

impl serde_json::ser::Formatter for AsciiJson {
    fn write_string_fragment<W: ?Sized + std::io::Write>(&mut self, w: &mut W, fragment: &str) -> std::io::Result<()> {
        let mut units = [0; 2];
        for c in fragment.chars() {
            if matches!(c, ' '..='~') {
                w.write_all(&[c as u8])?;
            } else {
                for u in c.encode_utf16(&mut units) {
                    write!(w, "\\u{u:04x}")?;
                }
            }
        }
        Ok(())
    }
    fn begin_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.begin_array(w)
    }
    fn end_array<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.end_array(w)
    }
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        self.0.begin_array_value(w, first)
    }
    fn end_array_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.end_array_value(w)
    }
    fn begin_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.begin_object(w)
    }
    fn end_object<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.end_object(w)
    }
    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, w: &mut W, first: bool) -> std::io::Result<()> {
        self.0.begin_object_key(w, first)
    }
    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.begin_object_value(w)
    }
    fn end_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        self.0.end_object_value(w)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;

    #[test]
    fn nothing_that_steers_a_terminal_gets_through() {
        let cases = [
            ("plain", "plain"),
            ("it's \"quoted\"", "it's \"quoted\""),
            ("\u{1b}[31mred\u{7}", "\\u{1b}[31mred\\u{7}"),
            ("a\nb\r\tc\0", "a\\nb\\r\\tc\\0"),
            ("\u{202e}gpj.exe", "\\u{202e}gpj.exe"),
            ("zero\u{200b}width\u{feff}", "zero\\u{200b}width\\u{feff}"),
            ("back\\slash", "back\\\\slash"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("grüße 漢字", "grüße 漢字"),
            ("'\u{1b}'", "'\\u{1b}'"),
        ];
        for (given, want) in cases {
            assert_eq!(text(given), want);
        }
        assert_eq!(text(&"x".repeat(200)), "x".repeat(200));
        assert_eq!(text(&"é".repeat(203)), format!("{}... (3 more characters)", "é".repeat(200)));
        assert_eq!(lines("a\u{1b}\nb"), "a\\u{1b}\nb");
        assert_eq!(message("not \\x89: \u{1b}"), "not \\x89: \\u{1b}");
    }

    #[test]
    fn json_is_ascii_and_lossless() {
        let hostile = "\u{1b}\u{9b}\u{202e}é😀\"\\\n\u{7f}";
        let mut out = Vec::new();
        let mut s = serde_json::Serializer::with_formatter(&mut out, AsciiJson::default());
        vec![hostile].serialize(&mut s).unwrap();
        assert!(out.iter().all(|b| matches!(b, b' '..=b'~' | b'\n')), "{}", out.escape_ascii());
        assert_eq!(serde_json::from_slice::<Vec<String>>(&out).unwrap(), [hostile]);
    }
}
