//! Arguments of a call, by position and by name.

use super::python::{kind, wrong};
use super::words::{Marks, Text};
use minijinja::value::Kwargs;
use minijinja::{Error, Value};

/// The values of the parameters `names`, in their order; `None` where the call gives none.
///
/// # Errors
/// If there are more arguments than parameters, or one has another name.
pub(super) fn bind<const N: usize>(call: &str, names: [&str; N], args: &[Value]) -> Result<[Option<Value>; N], Error> {
    let (positional, named) = match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Some(Kwargs::try_from(last.clone())?)),
        _ => (args, None),
    };
    if positional.len() > N {
        return Err(wrong(format!("{call} takes at most {N} arguments and was given {}", positional.len())));
    }
    let mut bound: [Option<Value>; N] = std::array::from_fn(|i| positional.get(i).cloned());
    for name in named.iter().flat_map(Kwargs::args) {
        let at = names.iter().position(|n| *n == name);
        let at = at.filter(|at| bound[*at].is_none());
        let at = at.ok_or_else(|| wrong(format!("{call} has no other argument {name:?}")))?;
        bound[at] = named.as_ref().map(|k| k.get(name)).transpose()?;
    }
    Ok(bound)
}

/// An argument that must be there.
pub(super) fn needed(call: &str, value: Option<Value>) -> Result<Value, Error> {
    value.ok_or_else(|| wrong(format!("{call} lacks an argument")))
}

/// An argument that may be left out or be none.
pub(super) fn given(value: Option<Value>) -> Option<Value> {
    value.filter(|v| !v.is_none())
}

/// A string argument.
pub(super) fn text<'m>(call: &str, marks: &'m Marks, value: Option<Value>) -> Result<Text<'m>, Error> {
    let value = needed(call, value)?;
    marks.text(&value)
}

/// An integer argument.
pub(super) fn int(call: &str, value: &Value) -> Result<i64, Error> {
    value.as_i64().ok_or_else(|| wrong(format!("{call} needs an integer, not a {}", kind(value))))
}
