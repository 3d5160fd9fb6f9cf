//! The names that transformers gives to a template.

use super::arguments::{bind, needed};
use super::clock::Clock;
use super::python::{str, wrong};
use super::words::Marks;
use super::{filters, methods, operators};
use minijinja::value::Rest;
use minijinja::{Environment, Error, Value};
use std::sync::Arc;

/// Calls in each other: macros and recursive loops.
const DEPTH: usize = 32;

/// An environment for one rendering.
pub(super) fn environment(marks: &Arc<Marks>, clock: Clock, fuel: u64) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_fuel(Some(fuel));
    env.set_recursion_limit(DEPTH);
    let m = marks.clone();
    env.set_formatter(move |out, _, value| Ok(out.write_str(&str(&m, value)?)?));
    let m = marks.clone();
    env.set_unknown_method_callback(move |_, value, method, args| methods::call(&m, value, method, args));
    filters::add(&mut env, marks);
    operators::add(&mut env, marks);
    env.remove_global("debug");
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("cycler", |Rest(items): Rest<Value>| minijinja_contrib::globals::cycler(items));
    let m = marks.clone();
    env.add_function("raise_exception", move |Rest(args): Rest<Value>| {
        let [message] = bind("raise_exception", ["message"], &args)?;
        Err::<Value, Error>(wrong(m.plain(&str(&m, &needed("raise_exception", message)?)?)))
    });
    let m = marks.clone();
    env.add_function("strftime_now", move |Rest(args): Rest<Value>| {
        let [format] = bind("strftime_now", ["format"], &args)?;
        clock.strftime(&m.plain(&str(&m, &needed("strftime_now", format)?)?))
    });
    env
}
