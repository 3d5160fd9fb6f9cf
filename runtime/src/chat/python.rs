//! What Python's operators and `str` do.

use super::words::{DEPTH, Letter, Marks, fits};
use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{ObjectRepr, Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use unicode_general_category::{GeneralCategory, get_general_category};

pub(super) fn wrong(what: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}

/// The name of a value's type in messages.
pub(super) fn kind(v: &Value) -> String {
    v.kind().to_string()
}

/// `str(value)`, as Jinja prints it: nothing for an undefined value.
pub(super) fn str(marks: &Marks, value: &Value) -> Result<String, Error> {
    match value.kind() {
        ValueKind::Undefined => Ok(String::new()),
        ValueKind::String => Ok(value.as_str().unwrap_or_default().to_owned()),
        _ => {
            let mut out = String::new();
            repr(marks, value, &mut out, 0)?;
            Ok(out)
        }
    }
}

/// `repr(value)`.
fn repr(marks: &Marks, value: &Value, out: &mut String, depth: usize) -> Result<(), Error> {
    if depth > DEPTH || out.len() > super::MARKED_CAP {
        return Err(wrong("a value is too large or nested too deeply to be printed"));
    }
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => out.push_str(&number(value)?),
        ValueKind::String => {
            let letters = marks.read(value.as_str().unwrap_or_default())?;
            out.push_str(&marks.write(quoted(&letters))?);
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            let mut n = 0;
            for item in value.try_iter()?.checked() {
                out.push_str(if n > 0 { ", " } else { "" });
                repr(marks, &item?, out, depth + 1)?;
                n += 1;
            }
            out.push_str(if tuple && n == 1 { "," } else { "" });
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            let pairs = value.as_object().and_then(|o| o.try_iter_pairs());
            for (n, (k, v)) in pairs.into_iter().flatten().enumerate() {
                out.push_str(if n > 0 { ", " } else { "" });
                repr(marks, &k, out, depth + 1)?;
                out.push_str(": ");
                repr(marks, &v, out, depth + 1)?;
            }
            out.push('}');
        }
        _ => return Err(wrong(format!("a {} cannot be printed", kind(value)))),
    }
    Ok(())
}

/// A number as Python prints it.
pub(super) fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let x = f64::try_from(value.clone())?;
    Ok(if x.is_nan() {
        "nan".into()
    } else if x.is_infinite() {
        if x > 0.0 { "inf".into() } else { "-inf".into() }
    } else if x != 0.0 && !(1e-4..1e16).contains(&x.abs()) {
        // Rust has the same shortest digits, but writes 1e16 and 1e-5 for 1e+16 and 1e-05.
        let s = format!("{x:e}");
        let (digits, exponent) = s.split_once('e').unwrap_or((&s, "0"));
        let exponent: i32 = exponent.parse().unwrap_or(0);
        format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
    } else if x.fract() == 0.0 {
        format!("{x:.1}")
    } else {
        x.to_string()
    })
}

/// A string in quotes. An escaped letter was said if the letter was.
fn quoted(letters: &[Letter]) -> Vec<Letter> {
    let has = |q| letters.iter().any(|(c, _)| *c == q);
    let quote = if has('\'') && !has('"') { '"' } else { '\'' };
    let mut out = vec![(quote, false)];
    for (c, said) in letters {
        let escaped = match *c {
            '\\' => "\\\\".to_owned(),
            '\n' => "\\n".to_owned(),
            '\r' => "\\r".to_owned(),
            '\t' => "\\t".to_owned(),
            c if c == quote => format!("\\{c}"),
            c if !printable(c) => match c as u32 {
                n @ 0..=0xff => format!("\\x{n:02x}"),
                n @ 0x100..=0xffff => format!("\\u{n:04x}"),
                n => format!("\\U{n:08x}"),
            },
            c => c.to_string(),
        };
        out.extend(escaped.chars().map(|c| (c, *said)));
    }
    out.push((quote, false));
    out
}

/// `str.isprintable` of a character.
fn printable(c: char) -> bool {
    use GeneralCategory::{
        Control, Format, LineSeparator, ParagraphSeparator, PrivateUse, SpaceSeparator, Surrogate, Unassigned,
    };
    c == ' '
        || !matches!(
            get_general_category(c),
            Control
                | Format
                | LineSeparator
                | ParagraphSeparator
                | PrivateUse
                | SpaceSeparator
                | Surrogate
                | Unassigned
        )
}

/// `a + b`.
pub(super) fn add(marks: &Marks, a: &Value, b: &Value) -> Result<Value, Error> {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        fits(x.len() + y.len())?;
        // What is safe in Jinja's sense escapes what is added to it.
        return match (a.is_safe(), b.is_safe()) {
            (false, false) => Ok(Value::from(format!("{x}{y}"))),
            (true, true) => Ok(Value::from_safe_string(format!("{x}{y}"))),
            (true, false) => Ok(Value::from_safe_string(format!("{x}{}", marks.write(escaped(&marks.read(y)?))?))),
            (false, true) => Ok(Value::from_safe_string(format!("{}{y}", marks.write(escaped(&marks.read(x)?))?))),
        };
    }
    let list = |v: &Value| matches!(v.kind(), ValueKind::Seq | ValueKind::Iterable);
    if list(a) && list(b) && a.is_tuple() == b.is_tuple() {
        let items = a.try_iter()?.checked().chain(b.try_iter()?.checked()).collect::<Result<Vec<_>, _>>()?;
        return Ok(if a.is_tuple() { Tuple::from(items).into() } else { items.into() });
    }
    let not = || wrong(format!("{} + {} is not possible", kind(a), kind(b)));
    match numbers(a, b).ok_or_else(not)? {
        Numbers::Ints(x, y) => x.checked_add(y).map(int).ok_or_else(not),
        Numbers::Floats(x, y) => Ok((x + y).into()),
    }
}

/// `a % b`: the remainder, or a format string filled in.
pub(super) fn rem(a: &Value, b: &Value) -> Result<Value, Error> {
    if let Some(s) = a.as_str() {
        let args = if b.is_tuple() { b.try_iter()?.collect() } else { vec![b.clone()] };
        return formatted(FormatStyle::Printf, s, &args).map(Value::from);
    }
    let not = || wrong(format!("{} % {} is not possible", kind(a), kind(b)));
    match numbers(a, b).ok_or_else(not)? {
        Numbers::Ints(x, y) => {
            x.checked_rem_euclid(y).map(|r| int(if y < 0 && r != 0 { r + y } else { r })).ok_or_else(not)
        }
        Numbers::Floats(_, 0.0) => Err(not()),
        Numbers::Floats(x, y) => {
            let r = x % y;
            Ok(if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r.abs().copysign(y) }.into())
        }
    }
}

/// A format string filled in.
pub(super) fn formatted(style: FormatStyle, s: &str, args: &[Value]) -> Result<String, Error> {
    // A width is given in characters, so a long number asks for much memory.
    let long = s.split(|c: char| !c.is_ascii_digit()).any(|number| number.len() > 4);
    let wide = s.contains('*') && args.iter().any(|a| a.as_i64().is_some_and(|n| n.abs() > 9999));
    if long || wide {
        return Err(wrong("a format string may have numbers of at most four digits"));
    }
    format(style, s, args)
}

enum Numbers {
    Ints(i128, i128),
    Floats(f64, f64),
}

/// Both as numbers; a truth value counts as 0 or 1.
fn numbers(a: &Value, b: &Value) -> Option<Numbers> {
    let counts = |v: &Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool);
    let whole = |v: &Value| v.is_integer() || v.kind() == ValueKind::Bool;
    let int = |v: &Value| i128::try_from(v.clone()).ok();
    let float = |v: &Value| {
        if v.kind() == ValueKind::Bool { Some(f64::from(u8::from(v.is_true()))) } else { f64::try_from(v.clone()).ok() }
    };
    match (counts(a) && counts(b), whole(a) && whole(b)) {
        (false, _) => None,
        (_, true) => Some(Numbers::Ints(int(a)?, int(b)?)),
        (_, false) => Some(Numbers::Floats(float(a)?, float(b)?)),
    }
}

fn int(x: i128) -> Value {
    i64::try_from(x).map_or_else(|_| x.into(), Value::from)
}

/// `needle in container`; both without marks.
pub(super) fn contains(container: &Value, needle: &Value) -> Result<bool, Error> {
    match container.kind() {
        ValueKind::Undefined => Ok(false),
        ValueKind::String => match needle.as_str() {
            Some(n) => Ok(container.as_str().unwrap_or_default().contains(n)),
            None => Err(wrong(format!("a {} cannot be looked for in a string", kind(needle)))),
        },
        ValueKind::Seq | ValueKind::Iterable | ValueKind::Map => {
            Ok(container.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?.contains(needle))
        }
        _ => Err(wrong(format!("nothing can be looked for in a {}", kind(container)))),
    }
}

/// How two values are ordered; both without marks.
pub(super) fn order(a: &Value, b: &Value) -> Result<std::cmp::Ordering, Error> {
    let comparable = |v: &Value| match v.kind() {
        ValueKind::Number | ValueKind::Bool => Some(0),
        ValueKind::String => Some(1),
        ValueKind::Seq => Some(2 + u8::from(v.is_tuple())),
        _ => None,
    };
    match (comparable(a), comparable(b)) {
        (Some(x), Some(y)) if x == y => Ok(match numbers(a, b) {
            Some(Numbers::Ints(x, y)) => x.cmp(&y),
            Some(Numbers::Floats(x, y)) => x.partial_cmp(&y).ok_or_else(|| wrong("nan is not ordered"))?,
            None => a.cmp(b),
        }),
        _ => Err(wrong(format!("{} and {} are not ordered", kind(a), kind(b)))),
    }
}

/// `value[start:stop:step]`.
pub(super) fn slice(marks: &Marks, value: &Value, bounds: [&Value; 3]) -> Result<Value, Error> {
    let index = |v: &Value| {
        if v.is_none() { Ok(None) } else { v.as_i64().map(Some).ok_or_else(|| wrong("slices need integers")) }
    };
    let [start, stop, step] = [index(bounds[0])?, index(bounds[1])?, index(bounds[2])?];
    match value.kind() {
        ValueKind::String => {
            let text = marks.text(value)?;
            let picked = picked(text.letters.len(), start, stop, step)?;
            text.give(picked.into_iter().map(|i| text.letters[i]))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
            let picked = picked(items.len(), start, stop, step)?;
            let items: Vec<Value> = picked.into_iter().map(|i| items[i].clone()).collect();
            Ok(if value.is_tuple() { Tuple::from(items).into() } else { items.into() })
        }
        ValueKind::Undefined => Err(Error::from(ErrorKind::UndefinedError)),
        // As everywhere in Jinja, what has no such item gives an undefined value.
        _ => Ok(Value::UNDEFINED),
    }
}

/// The indices of a slice of `len` items.
fn picked(len: usize, start: Option<i64>, stop: Option<i64>, step: Option<i64>) -> Result<Vec<usize>, Error> {
    let (len, step) = (len as i64, step.unwrap_or(1));
    if step == 0 {
        return Err(wrong("a slice's step cannot be zero"));
    }
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let bound = |x: Option<i64>, default: i64| match x {
        None => default,
        Some(x) if x < 0 => x.saturating_add(len).max(low),
        Some(x) => x.min(high),
    };
    let (mut at, end) =
        if step > 0 { (bound(start, 0), bound(stop, len)) } else { (bound(start, len - 1), bound(stop, -1)) };
    let mut out = Vec::new();
    while if step > 0 { at < end } else { at > end } {
        out.extend(usize::try_from(at));
        at = at.saturating_add(step);
    }
    Ok(out)
}

/// A string with the characters escaped that mean something in HTML.
pub(super) fn escaped(letters: &[Letter]) -> Vec<Letter> {
    let mut out = Vec::with_capacity(letters.len());
    for (c, said) in letters {
        match c {
            '&' => out.extend("&amp;".chars().map(|c| (c, *said))),
            '<' => out.extend("&lt;".chars().map(|c| (c, *said))),
            '>' => out.extend("&gt;".chars().map(|c| (c, *said))),
            '\'' => out.extend("&#39;".chars().map(|c| (c, *said))),
            '"' => out.extend("&#34;".chars().map(|c| (c, *said))),
            c => out.push((*c, *said)),
        }
    }
    out
}

/// Whether `repr` is one of a mapping.
pub(super) fn is_mapping(v: &Value) -> bool {
    v.as_object().is_some_and(|o| o.repr() == ObjectRepr::Map)
}
