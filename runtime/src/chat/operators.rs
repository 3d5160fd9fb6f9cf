//! Jinja's tests and operators. Operators run as tests and filters of these names, see `program`.

use super::python::{add as plus, contains, is_mapping, order, rem, slice, str, wrong};
use super::words::{Marks, fits};
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, Value};
use std::cmp::Ordering;
use std::sync::Arc;

/// A test: the value, looked at without marks, and its arguments.
type Test = fn(&Value, &[Value]) -> Result<bool, Error>;

const TESTS: &[(&[&str], Test)] = &[
    (&["eq", "equalto", "=="], |v, a| Ok(*v == *one(a)?)),
    (&["ne", "!="], |v, a| Ok(*v != *one(a)?)),
    (&["lt", "lessthan", "<"], |v, a| Ok(order(v, one(a)?)? == Ordering::Less)),
    (&["le", "<="], |v, a| Ok(order(v, one(a)?)? != Ordering::Greater)),
    (&["gt", "greaterthan", ">"], |v, a| Ok(order(v, one(a)?)? == Ordering::Greater)),
    (&["ge", ">="], |v, a| Ok(order(v, one(a)?)? != Ordering::Less)),
    (&["in"], |v, a| contains(one(a)?, v)),
    (&["lower"], |v, _| cased(v, char::is_lowercase, char::is_uppercase)),
    (&["upper"], |v, _| cased(v, char::is_uppercase, char::is_lowercase)),
    (&["string"], |v, _| Ok(v.kind() == ValueKind::String)),
    // In Python a truth value is a number, and an undefined value can be iterated.
    (&["number"], |v, _| Ok(matches!(v.kind(), ValueKind::Number | ValueKind::Bool))),
    (&["integer"], |v, _| Ok(v.is_integer())),
    (&["float"], |v, _| Ok(v.kind() == ValueKind::Number && !v.is_integer())),
    (&["mapping"], |v, _| Ok(is_mapping(v))),
    // What has a length and items.
    (&["sequence"], |v, _| {
        Ok(matches!(
            v.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::Undefined
        ))
    }),
    (&["iterable"], |v, _| {
        Ok(matches!(
            v.kind(),
            ValueKind::String | ValueKind::Seq | ValueKind::Iterable | ValueKind::Map | ValueKind::Undefined
        ))
    }),
    (&["callable"], |v, _| Ok(v.kind() == ValueKind::Plain)),
];

/// Tests of the library that Jinja does not have.
const REMOVED: &[&str] = &["startingwith", "endingwith", "int", "safe"];

pub(super) fn add(env: &mut Environment<'_>, marks: &Arc<Marks>) {
    REMOVED.iter().for_each(|name| env.remove_test(name));
    for (names, test) in TESTS {
        for name in *names {
            let marks = marks.clone();
            env.add_test(*name, move |value: &Value, Rest(args): Rest<Value>| {
                let args = args.iter().map(|a| marks.look(a)).collect::<Result<Vec<_>, _>>()?;
                test(&marks.look(value)?, &args)
            });
        }
    }
    let m = marks.clone();
    env.add_filter(ADD, move |a: &Value, b: &Value| plus(&m, a, b));
    env.add_filter(REM, |a: &Value, b: &Value| rem(a, b));
    let m = marks.clone();
    env.add_filter(CONCAT, move |a: &Value, b: &Value| {
        let (a, b) = (str(&m, a)?, str(&m, b)?);
        fits(a.len() + b.len()).map(|()| a + &b)
    });
    let m = marks.clone();
    env.add_filter(SLICE, move |v: &Value, start: &Value, stop: &Value, step: &Value| {
        slice(&m, v, [start, stop, step])
    });
}

// Names that no template writes. The library looks up names without their white space.
pub(super) const ADD: &str = "operator+";
pub(super) const REM: &str = "operator%";
pub(super) const CONCAT: &str = "operator~";
pub(super) const SLICE: &str = "operator[:]";

fn one(args: &[Value]) -> Result<&Value, Error> {
    match args {
        [one] => Ok(one),
        _ => Err(wrong("this test compares with one value")),
    }
}

/// `str(value).islower()` and `isupper`.
fn cased(v: &Value, is: fn(char) -> bool, other: fn(char) -> bool) -> Result<bool, Error> {
    let s = str(&Marks::none(), v)?;
    Ok(s.chars().any(is) && !s.chars().any(other))
}
