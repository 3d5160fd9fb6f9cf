//! Jinja's filters where those of the library look at characters, print values, or differ from Jinja's.

use super::arguments::{bind, given, int, needed, text};
use super::json::tojson;
use super::letters;
use super::methods::strip;
use super::python::{escaped, formatted, kind, str, wrong};
use super::words::{Letter, Marks, Text, fits};
use minijinja::formatting::FormatStyle;
use minijinja::value::{Rest, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, Value};
use std::sync::Arc;

/// A filter: the value and its arguments.
type Filter = fn(&Marks, &Value, &[Value]) -> Result<Value, Error>;

const FILTERS: &[(&str, Filter)] = &[
    ("upper", |m, v, a| text_filter(m, v, a, "upper", letters::upper)),
    ("lower", |m, v, a| text_filter(m, v, a, "lower", letters::lower)),
    ("title", |m, v, a| text_filter(m, v, a, "title", letters::title_filter)),
    ("capitalize", |m, v, a| text_filter(m, v, a, "capitalize", letters::capitalize)),
    ("trim", trim),
    ("replace", replace),
    ("indent", indent),
    ("center", center),
    ("wordcount", wordcount),
    ("join", join),
    ("string", |m, v, a| bind("string", [], a).and_then(|[]| soft(m, v))),
    ("safe", |m, v, a| bind("safe", [], a).and_then(|[]| Ok(Value::from_safe_string(str(m, v)?)))),
    ("escape", escape),
    ("e", escape),
    ("forceescape", escape),
    ("format", |m, v, a| formatted(FormatStyle::Printf, &str(m, v)?, a).map(Value::from)),
    ("tojson", tojson),
    ("int", to_int),
    ("float", to_float),
    ("length", length),
    ("count", length),
];

/// Filters of the library that Jinja does not have, or has with other results.
const REMOVED: &[&str] = &["split", "lines", "bool", "chain", "zip", "pprint", "attr"];

pub(super) fn add(env: &mut Environment<'_>, marks: &Arc<Marks>) {
    REMOVED.iter().for_each(|name| env.remove_filter(name));
    for (name, filter) in FILTERS {
        let marks = marks.clone();
        env.add_filter(*name, move |value: &Value, args: Rest<ValueOrKwargs>| {
            filter(&marks, value, &args.into_values())
        });
    }
}

/// A value as a string, safe if it was a safe one.
fn soft(marks: &Marks, value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value.clone()) } else { str(marks, value).map(Value::from) }
}

/// The string that a filter gets, and what it does with it.
fn with<T>(marks: &Marks, value: &Value, f: impl FnOnce(&Text<'_>) -> Result<T, Error>) -> Result<T, Error> {
    let value = soft(marks, value)?;
    f(&marks.text(&value)?)
}

fn text_filter(
    marks: &Marks,
    value: &Value,
    args: &[Value],
    name: &str,
    f: fn(&[Letter]) -> Vec<Letter>,
) -> Result<Value, Error> {
    bind(name, [], args).and_then(|[]| with(marks, value, |t| t.give(f(&t.letters))))
}

fn trim(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [chars] = bind("trim", ["chars"], args)?;
    with(marks, value, |t| t.give(t.letters[strip(marks, &t.letters, "trim", chars)?].iter().copied()))
}

fn replace(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [old, new, most] = bind("replace", ["old", "new", "count"], args)?;
    let of = |v: Option<Value>| needed("replace", v).and_then(|v| with(marks, &v, |t| Ok(t.clone().letters)));
    let old: Vec<char> = of(old)?.into_iter().map(|(c, _)| c).collect();
    let (new, most) = (of(new)?, given(most).map_or(Ok(-1), |n| int("replace", &n))?);
    with(marks, value, |t| {
        t.give(letters::replace(&t.letters, &old, &new, usize::try_from(most).unwrap_or(usize::MAX))?)
    })
}

fn indent(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [width, first, blank] = bind("indent", ["width", "first", "blank"], args)?;
    let yes = |v: Option<Value>| v.is_some_and(|v| v.is_true());
    let (first, blank) = (yes(first), yes(blank));
    let by = match width {
        Some(w) if w.as_str().is_some() => text("indent", marks, Some(w))?.letters,
        w => vec![(' ', false); usize::try_from(w.map_or(Ok(4), |w| int("indent", &w))?.min(1024)).unwrap_or(0)],
    };
    with(marks, value, |t| {
        let mut whole = t.letters.clone();
        // As Jinja does, so that a newline at the end begins one more line.
        whole.push(('\n', false));
        let mut out = if first { by.clone() } else { Vec::new() };
        for (n, line) in letters::lines(&whole, false).into_iter().enumerate() {
            if n > 0 {
                out.push(('\n', false));
                out.extend_from_slice(if blank || !line.is_empty() { &by } else { &[] });
            }
            out.extend_from_slice(line);
        }
        t.give(out)
    })
}

fn center(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [width] = bind("center", ["width"], args)?;
    let value = soft(marks, value)?;
    super::methods::call(marks, &value, "center", &[width.unwrap_or_else(|| 80.into())])
}

/// The number of words; a word is a run of letters, digits and underscores.
fn wordcount(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    bind("wordcount", [], args).and_then(|[]| {
        with(marks, value, |t| {
            let word = |c: char| c.is_alphanumeric() || c == '_';
            Ok(t.plain().split(|c| !word(c)).filter(|w| !w.is_empty()).count().into())
        })
    })
}

fn join(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [between, attribute] = bind("join", ["d", "attribute"], args)?;
    let between = between.map_or_else(|| Ok(String::new()), |d| str(marks, &d))?;
    let attribute = given(attribute);
    let mut out = String::new();
    for (n, item) in value.try_iter()?.checked().enumerate() {
        let item = match &attribute {
            None => item?,
            Some(path) => attribute_of(item?, path)?,
        };
        out += if n > 0 { &between } else { "" };
        out += &str(marks, &item)?;
        fits(out.len())?;
    }
    Ok(out.into())
}

/// An attribute by its path: `a.b.0`.
fn attribute_of(mut value: Value, path: &Value) -> Result<Value, Error> {
    let Some(path) = path.as_str() else { return value.get_item(path) };
    for step in path.split('.') {
        value = match step.parse::<i64>() {
            Ok(n) => value.get_item(&n.into())?,
            Err(_) => value.get_item(&step.into())?,
        };
    }
    Ok(value)
}

fn escape(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    bind("escape", [], args).map(|[]| ())?;
    if value.is_safe() {
        return Ok(value.clone());
    }
    with(marks, value, |t| marks.write(escaped(&t.letters)).map(Value::from_safe_string))
}

fn to_int(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default, base] = bind("int", ["default", "base"], args)?;
    let base = base.map_or(Ok(10), |b| int("int", &b))?;
    let default = default.unwrap_or_else(|| 0.into());
    let whole = |x: f64| if x.is_finite() && x.abs() < 9e18 { (x as i64).into() } else { default.clone() };
    Ok(match value.kind() {
        ValueKind::String => {
            let s = marks.plain(value.as_str().unwrap_or_default())?;
            if base != 10 && s.contains('_') || !(2..=36).contains(&base) {
                return Err(wrong("int with this base is not supported"));
            }
            let s = s.trim();
            let (sign, digits) = s.strip_prefix('-').map_or((1, s.strip_prefix('+').unwrap_or(s)), |d| (-1, d));
            let prefix = match base {
                16 => ["0x", "0X"],
                8 => ["0o", "0O"],
                2 => ["0b", "0B"],
                _ => ["", ""],
            };
            let digits = prefix.iter().find_map(|p| digits.strip_prefix(p)).unwrap_or(digits);
            match digits_of(digits).and_then(|d| i64::from_str_radix(&d, base as u32).ok()) {
                Some(n) => (sign * n).into(),
                None => float_of(s).map_or_else(|| default.clone(), whole),
            }
        }
        ValueKind::Number if value.is_integer() => value.clone(),
        ValueKind::Number => whole(f64::try_from(value.clone())?),
        ValueKind::Bool => i64::from(value.is_true()).into(),
        ValueKind::Undefined => return Err(wrong("int of an undefined value")),
        _ => default,
    })
}

fn to_float(marks: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    let [default] = bind("float", ["default"], args)?;
    let default = default.unwrap_or_else(|| 0.0.into());
    Ok(match value.kind() {
        ValueKind::String => float_of(&marks.plain(value.as_str().unwrap_or_default())?).map_or(default, Value::from),
        ValueKind::Number => f64::try_from(value.clone())?.into(),
        ValueKind::Bool => f64::from(u8::from(value.is_true())).into(),
        ValueKind::Undefined => return Err(wrong("float of an undefined value")),
        _ => default,
    })
}

/// Digits without the underscores that may stand between two of them.
fn digits_of(s: &str) -> Option<String> {
    let sound = !s.starts_with(['_', '+', '-']) && !s.ends_with('_') && !s.contains("__");
    sound.then(|| s.replace('_', ""))
}

fn float_of(s: &str) -> Option<f64> {
    let s = s.trim();
    let (sign, digits) = s.strip_prefix('-').map_or((1.0, s.strip_prefix('+').unwrap_or(s)), |d| (-1.0, d));
    digits_of(digits)?.parse::<f64>().ok().map(|x| sign * x)
}

fn length(_: &Marks, value: &Value, args: &[Value]) -> Result<Value, Error> {
    bind("length", [], args).map(|[]| ())?;
    match value.kind() {
        ValueKind::Undefined => Ok(0.into()),
        ValueKind::Iterable => Ok(value.try_iter()?.count().into()),
        _ => value.len().map(Value::from).ok_or_else(|| wrong(format!("a {} has no length", kind(value)))),
    }
}
