//! The methods of Python's strings, lists and mappings that its sandbox allows.

use super::arguments::{bind, given, int, needed, text};
use super::letters;
use super::python::{formatted, kind, wrong};
use super::words::{Letter, Marks, Text, fits};
use minijinja::formatting::FormatStyle;
use minijinja::value::{Tuple, ValueKind};
use minijinja::{Error, ErrorKind, Value};
use std::collections::HashSet;
use std::ops::Range;

/// Calls a method of a value.
pub(super) fn call(marks: &Marks, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let unknown = || {
        Error::new(ErrorKind::UnknownMethod, format!("{} has no method {method}, or none that is safe", kind(value)))
    };
    match value.kind() {
        ValueKind::String => of_string(marks, &marks.text(value)?, method, args)?.ok_or_else(unknown),
        ValueKind::Map => of_mapping(marks, value, method, args)?.ok_or_else(unknown),
        ValueKind::Seq | ValueKind::Iterable => of_list(marks, value, method, args)?.ok_or_else(unknown),
        _ => Err(unknown()),
    }
}

fn of_string(marks: &Marks, s: &Text<'_>, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let none = || bind(method, [], args).map(|[]| ());
    let l = &s.letters;
    let give = |part: &[Letter]| s.give(part.iter().copied());
    let list = |parts: Vec<&[Letter]>| parts.into_iter().map(give).collect::<Result<Vec<_>, _>>().map(Value::from);
    Ok(Some(match method {
        "upper" => none().and_then(|()| give(&letters::upper(l)))?,
        "lower" => none().and_then(|()| give(&letters::lower(l)))?,
        "title" => none().and_then(|()| give(&letters::title(l)))?,
        "capitalize" => none().and_then(|()| give(&letters::capitalize(l)))?,
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bind(method, ["chars"], args)?;
            give(&l[strip(marks, l, method, chars)?])?
        }
        "removeprefix" | "removesuffix" => {
            let [part] = bind(method, ["part"], args)?;
            let part = text(method, marks, part)?.chars();
            let rest = l.len().saturating_sub(part.len());
            match method {
                "removeprefix" if letters::stands(l, &part, 0) => give(&l[part.len()..])?,
                "removesuffix" if part.len() <= l.len() && letters::stands(l, &part, rest) => give(&l[..rest])?,
                _ => give(l)?,
            }
        }
        "split" | "rsplit" => {
            let [sep, most] = bind(method, ["sep", "maxsplit"], args)?;
            let most = most.map_or(Ok(-1), |n| int(method, &n))?;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            list(match (given(sep), method) {
                (None, "split") => letters::words(l, most),
                (None, _) => letters::rwords(l, most),
                (sep, _) => {
                    let sep = text(method, marks, sep)?.chars();
                    match (sep.is_empty(), method) {
                        (true, _) => return Err(wrong("the separator is empty")),
                        (_, "split") => letters::split(l, &sep, most),
                        _ => letters::rsplit(l, &sep, most),
                    }
                }
            })?
        }
        "splitlines" => {
            let [keep] = bind(method, ["keepends"], args)?;
            list(letters::lines(l, keep.is_some_and(|k| k.is_true())))?
        }
        "partition" | "rpartition" => {
            let [sep] = bind(method, ["sep"], args)?;
            let sep = text(method, marks, sep)?.chars();
            if sep.is_empty() {
                return Err(wrong("the separator is empty"));
            }
            let parts = match method {
                "partition" => {
                    letters::find(l, &sep, 0..l.len()).map_or([&l[..], &[], &[]], |at| cut(l, at, sep.len()))
                }
                _ => letters::rfind(l, &sep, 0..l.len()).map_or([&[], &[], &l[..]], |at| cut(l, at, sep.len())),
            };
            Tuple::from(parts.into_iter().map(give).collect::<Result<Vec<_>, _>>()?).into()
        }
        "replace" => {
            let [old, new, most] = bind(method, ["old", "new", "count"], args)?;
            let (old, new) = (text(method, marks, old)?.chars(), text(method, marks, new)?.letters);
            let most = most.map_or(Ok(-1), |n| int(method, &n))?;
            give(&letters::replace(l, &old, &new, usize::try_from(most).unwrap_or(usize::MAX))?)?
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let [part, start, end] = bind(method, ["sub", "start", "end"], args)?;
            let part = text(method, marks, part)?.chars();
            let Some(within) = range(method, l.len(), start, end)? else {
                return match method {
                    "count" => Ok(Some(0.into())),
                    "find" | "rfind" => Ok(Some((-1).into())),
                    _ => Err(wrong("the substring was not found")),
                };
            };
            match method {
                "count" if part.is_empty() => (within.len() + 1).into(),
                "count" => letters::every(&l[within], &part, usize::MAX).len().into(),
                _ => {
                    let search = if method.starts_with('r') { letters::rfind } else { letters::find };
                    match search(l, &part, within) {
                        Some(at) => at.into(),
                        None if method.ends_with("find") => (-1).into(),
                        None => return Err(wrong("the substring was not found")),
                    }
                }
            }
        }
        "startswith" | "endswith" => {
            let [part, start, end] = bind(method, ["part", "start", "end"], args)?;
            let part = needed(method, part)?;
            let parts = if part.is_tuple() { part.try_iter()?.collect() } else { vec![part] };
            let within = range(method, l.len(), start, end)?;
            let mut any = false;
            for part in parts {
                let part = text(method, marks, Some(part))?.chars();
                any |= within.clone().is_some_and(|r| {
                    let at = if method == "startswith" { Some(0) } else { r.len().checked_sub(part.len()) };
                    at.is_some_and(|at| letters::stands(&l[r], &part, at))
                });
            }
            any.into()
        }
        "join" => {
            let [items] = bind(method, ["iterable"], args)?;
            let mut out = String::new();
            let between = marks.write(l.iter().copied())?;
            for (n, item) in needed(method, items)?.try_iter()?.checked().enumerate() {
                let item = item?;
                let item = item.as_str().ok_or_else(|| wrong(format!("join needs strings, not a {}", kind(&item))))?;
                out += if n > 0 { &between } else { "" };
                out += item;
                fits(out.len())?;
            }
            if s.safe { Value::from_safe_string(out) } else { out.into() }
        }
        "format" => formatted(FormatStyle::StrFormat, &marks.write(l.iter().copied())?, args)?.into(),
        "zfill" | "ljust" | "rjust" | "center" => pad(marks, s, method, args)?,
        "isupper" | "islower" | "isspace" | "isalpha" | "isdigit" | "isdecimal" | "isnumeric" | "isalnum"
        | "isascii" => {
            none()?;
            is(method, &s.plain()).into()
        }
        _ => return Ok(None),
    }))
}

/// The part of a string that is left when these characters, or white space, are stripped.
pub(super) fn strip(marks: &Marks, l: &[Letter], method: &str, chars: Option<Value>) -> Result<Range<usize>, Error> {
    let sides = (!method.starts_with('r'), !method.starts_with('l'));
    match given(chars) {
        None => Ok(letters::stripped(l, &letters::is_space, sides)),
        chars => {
            let chars: HashSet<char> = text(method, marks, chars)?.chars().into_iter().collect();
            Ok(letters::stripped(l, &|c| chars.contains(&c), sides))
        }
    }
}

fn cut(l: &[Letter], at: usize, len: usize) -> [&[Letter]; 3] {
    [&l[..at], &l[at..at + len], &l[at + len..]]
}

/// `start` and `end` as the methods that search take them; `None` if nothing can be found there, not even nothing.
fn range(method: &str, len: usize, start: Option<Value>, end: Option<Value>) -> Result<Option<Range<usize>>, Error> {
    let bound = |v: Option<Value>, default: usize| match given(v) {
        None => Ok(default),
        Some(v) => int(method, &v).map(|i| {
            let i = if i < 0 { i.saturating_add(len as i64) } else { i };
            usize::try_from(i).unwrap_or(0)
        }),
    };
    let (start, end) = (bound(start, 0)?, bound(end, len)?.min(len));
    Ok((start <= end).then_some(start..end))
}

fn pad(marks: &Marks, s: &Text<'_>, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [width, fill] = bind(method, ["width", "fillchar"], args)?;
    let fill = match (fill, method) {
        (None, "zfill") => ('0', false),
        (None, _) => (' ', false),
        (fill, _) => match text(method, marks, fill)?.letters[..] {
            [letter] if method != "zfill" => letter,
            _ => return Err(wrong(format!("{method} fills with one character"))),
        },
    };
    let width = usize::try_from(int(method, &needed(method, width)?)?).unwrap_or(0);
    let missing = width.saturating_sub(s.letters.len());
    if missing > super::OUTPUT_CAP {
        return Err(wrong(format!("{method} to {width} characters is too wide")));
    }
    let left = match method {
        "ljust" => 0,
        "center" => missing / 2 + (missing & width & 1),
        _ => missing,
    };
    let sign = usize::from(method == "zfill" && s.letters.first().is_some_and(|(c, _)| matches!(c, '+' | '-')));
    let mut out = s.letters[..sign].to_vec();
    out.extend(std::iter::repeat_n(fill, left));
    out.extend_from_slice(&s.letters[sign..]);
    out.extend(std::iter::repeat_n(fill, missing - left));
    s.give(out)
}

/// The methods that ask what a string is made of.
fn is(method: &str, s: &str) -> bool {
    let all = |f: fn(char) -> bool| !s.is_empty() && s.chars().all(f);
    match method {
        "isupper" => s.chars().any(char::is_uppercase) && !s.chars().any(char::is_lowercase),
        "islower" => s.chars().any(char::is_lowercase) && !s.chars().any(char::is_uppercase),
        "isspace" => all(letters::is_space),
        "isalpha" => all(is_letter),
        "isdecimal" => all(is_decimal),
        "isdigit" => all(is_digit),
        "isnumeric" => all(char::is_numeric),
        "isalnum" => all(|c| is_letter(c) || c.is_numeric()),
        _ => s.is_ascii(),
    }
}

fn is_letter(c: char) -> bool {
    use unicode_general_category::GeneralCategory as G;
    let letters = [G::UppercaseLetter, G::LowercaseLetter, G::TitlecaseLetter, G::ModifierLetter, G::OtherLetter];
    letters.contains(&unicode_general_category::get_general_category(c))
}

fn is_decimal(c: char) -> bool {
    unicode_general_category::get_general_category(c) == unicode_general_category::GeneralCategory::DecimalNumber
}

/// Decimal digits and those that are raised, lowered or circled.
fn is_digit(c: char) -> bool {
    is_decimal(c)
        || matches!(c, '²' | '³' | '¹' | '⁰' | '⁴'..='⁹' | '₀'..='₉' | '\u{1369}'..='\u{1371}' | '\u{19da}'
            | '①'..='⑨' | '⑴'..='⑼' | '⒈'..='⒐' | '⓪' | '⓵'..='⓽' | '⓿' | '❶'..='❾' | '➀'..='➈' | '➊'..='➒'
            | '\u{10a40}'..='\u{10a43}' | '\u{10e60}'..='\u{10e68}' | '\u{11052}'..='\u{1105a}'
            | '\u{1f100}'..='\u{1f10a}')
}

fn of_mapping(marks: &Marks, value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let pairs = || -> Vec<(Value, Value)> {
        value.as_object().and_then(|o| o.try_iter_pairs()).into_iter().flatten().collect()
    };
    let none = || bind(method, [], args).map(|[]| ());
    Ok(Some(match method {
        "get" => {
            let [key, default] = bind(method, ["key", "default"], args)?;
            let key = marks.look(&needed(method, key)?)?;
            let found = value.as_object().and_then(|o| o.get_value(&key));
            found.or(default).unwrap_or_else(|| ().into())
        }
        "keys" => none().map(|()| pairs().into_iter().map(|(k, _)| k).collect())?,
        "values" => none().map(|()| pairs().into_iter().map(|(_, v)| v).collect())?,
        "items" => none().map(|()| pairs().into_iter().map(|(k, v)| Value::from(Tuple::from([k, v]))).collect())?,
        "copy" => none().map(|()| value.clone())?,
        _ => return Ok(None),
    }))
}

fn of_list(marks: &Marks, value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let items = || value.try_iter()?.map(|v| marks.look(&v)).collect::<Result<Vec<_>, _>>();
    Ok(Some(match method {
        "count" => {
            let [what] = bind(method, ["value"], args)?;
            let what = marks.look(&needed(method, what)?)?;
            items()?.iter().filter(|v| **v == what).count().into()
        }
        "index" => {
            let [what] = bind(method, ["value"], args)?;
            let what = marks.look(&needed(method, what)?)?;
            items()?.iter().position(|v| *v == what).ok_or_else(|| wrong("the list has no such item"))?.into()
        }
        "copy" => bind(method, [], args).map(|[]| value.clone())?,
        _ => return Ok(None),
    }))
}
