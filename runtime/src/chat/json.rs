//! The filter `tojson` as transformers defines it: Python's `json.dumps`, without escapes for HTML.

use super::arguments::{bind, given, text};
use super::python::{kind, number, wrong};
use super::words::{DEPTH, Letter, Marks};
use minijinja::value::ValueKind;
use minijinja::{Error, Value};

/// How JSON is written.
struct Style {
    ascii: bool,
    /// What one level is indented by; without it, everything is on one line.
    indent: Option<Vec<Letter>>,
    item: Vec<Letter>,
    key: Vec<Letter>,
    sorted: bool,
}

/// `value | tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
pub(super) fn tojson(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [ascii, indent, separators, sorted] =
        bind("tojson", ["ensure_ascii", "indent", "separators", "sort_keys"], args)?;
    let plain = |s: &str| s.chars().map(|c| (c, false)).collect::<Vec<_>>();
    let indent = match given(indent) {
        None => None,
        Some(n) if n.as_str().is_some() => Some(text("tojson", marks, Some(n))?.letters),
        Some(n) => {
            let n = n.as_i64().ok_or_else(|| wrong("indent is a number of spaces or a string"))?;
            Some(vec![(' ', false); usize::try_from(n.min(64)).unwrap_or(0)])
        }
    };
    let [item, key] = match given(separators) {
        None => [plain(if indent.is_some() { "," } else { ", " }), plain(": ")],
        Some(pair) => {
            let pair: Vec<Value> = pair.try_iter()?.collect();
            let [item, key] = <[Value; 2]>::try_from(pair).map_err(|_| wrong("separators are two strings"))?;
            [text("tojson", marks, Some(item))?.letters, text("tojson", marks, Some(key))?.letters]
        }
    };
    let yes = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let style = Style { ascii: yes(ascii), indent, item, key, sorted: yes(sorted) };
    let mut out = Vec::new();
    style.write(marks, value, 0, &mut out)?;
    marks.write(out).map(Value::from)
}

impl Style {
    fn write(&self, marks: &Marks, value: &Value, depth: usize, out: &mut Vec<Letter>) -> Result<(), Error> {
        if depth > DEPTH {
            return Err(wrong("a value is nested too deeply for JSON"));
        }
        let mut plain = |s: &str| out.extend(s.chars().map(|c| (c, false)));
        match value.kind() {
            ValueKind::None => plain("null"),
            ValueKind::Bool => plain(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => plain(&json_number(value)?),
            ValueKind::String => self.string(&marks.read(value.as_str().unwrap_or_default())?, out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
                self.list(('[', ']'), items.len(), depth, out, &mut |n, out| {
                    self.write(marks, &items[n], depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let pairs = value.as_object().and_then(|o| o.try_iter_pairs());
                let mut pairs: Vec<(Value, Value)> = pairs.into_iter().flatten().collect();
                if self.sorted {
                    let name = |k: &Value| k.as_str().map(|s| marks.plain(s).unwrap_or_default());
                    pairs.sort_by(|(a, _), (b, _)| name(a).cmp(&name(b)).then_with(|| a.cmp(b)));
                }
                self.list(('{', '}'), pairs.len(), depth, out, &mut |n, out| {
                    let (key, value) = &pairs[n];
                    let name = match key.kind() {
                        ValueKind::String => marks.read(key.as_str().unwrap_or_default())?,
                        ValueKind::Number => json_number(key)?.chars().map(|c| (c, false)).collect(),
                        ValueKind::Bool | ValueKind::None => {
                            let mut name = Vec::new();
                            self.write(marks, key, depth, &mut name)?;
                            name
                        }
                        _ => return Err(wrong(format!("a {} cannot be a key in JSON", kind(key)))),
                    };
                    self.string(&name, out);
                    out.extend_from_slice(&self.key);
                    self.write(marks, value, depth + 1, out)
                })?;
            }
            _ => return Err(wrong(format!("a {} cannot be written as JSON", kind(value)))),
        }
        Ok(())
    }

    fn list(
        &self,
        (open, close): (char, char),
        len: usize,
        depth: usize,
        out: &mut Vec<Letter>,
        item: &mut dyn FnMut(usize, &mut Vec<Letter>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let line = |depth: usize, out: &mut Vec<Letter>| {
            if let Some(indent) = &self.indent {
                out.push(('\n', false));
                (0..depth).for_each(|_| out.extend_from_slice(indent));
            }
        };
        out.push((open, false));
        for n in 0..len {
            if n > 0 {
                out.extend_from_slice(&self.item);
            }
            line(depth + 1, out);
            item(n, out)?;
            if out.len() > super::OUTPUT_CAP {
                return Err(wrong("the JSON is too long"));
            }
        }
        if len > 0 {
            line(depth, out);
        }
        out.push((close, false));
        Ok(())
    }

    fn string(&self, letters: &[Letter], out: &mut Vec<Letter>) {
        out.push(('"', false));
        for (c, said) in letters {
            let escaped = match c {
                '"' => "\\\"".to_owned(),
                '\\' => "\\\\".to_owned(),
                '\n' => "\\n".to_owned(),
                '\r' => "\\r".to_owned(),
                '\t' => "\\t".to_owned(),
                '\x08' => "\\b".to_owned(),
                '\x0c' => "\\f".to_owned(),
                c if *c < ' ' || self.ascii && *c > '~' => {
                    let mut units = [0; 2];
                    c.encode_utf16(&mut units).iter().map(|u| format!("\\u{u:04x}")).collect()
                }
                c => c.to_string(),
            };
            out.extend(escaped.chars().map(|c| (c, *said)));
        }
        out.push(('"', false));
    }
}

/// A number as `json.dumps` writes it.
fn json_number(value: &Value) -> Result<String, Error> {
    Ok(match number(value)?.as_str() {
        "nan" => "NaN".into(),
        "inf" => "Infinity".into(),
        "-inf" => "-Infinity".into(),
        n => n.into(),
    })
}
