//! The names that transformers gives to a template.

use super::arguments::{bind, needed};
use super::clock::strftime;
use super::python::{str, wrong};
use super::words::Marks;
use super::{filters, methods, operators};
use jiff::ZonedDateTime;
use minijinja::value::{Object, ObjectRepr, Rest, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Calls in each other: macros and recursive loops.
const DEPTH: usize = 32;

/// An environment for one rendering at a time.
pub(super) fn environment(marks: &Arc<Marks>, now: &ZonedDateTime, fuel: u64) -> Environment<'static> {
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
    env.add_function("joiner", |args: Rest<ValueOrKwargs>| {
        let [between] = bind("joiner", ["sep"], &args.into_values())?;
        Ok::<_, Error>(Value::from_object(Joiner {
            between: between.unwrap_or_else(|| ", ".into()),
            used: false.into(),
        }))
    });
    env.add_function("cycler", |Rest(items): Rest<Value>| match items.is_empty() {
        true => Err(wrong("cycler needs items")),
        false => Ok(Value::from_object(Cycler { items, at: 0.into() })),
    });
    let m = marks.clone();
    env.add_function("raise_exception", move |args: Rest<ValueOrKwargs>| {
        let [message] = bind("raise_exception", ["message"], &args.into_values())?;
        Err::<Value, Error>(wrong(m.plain(&str(&m, &needed("raise_exception", message)?)?)?))
    });
    let (m, now) = (marks.clone(), now.clone());
    env.add_function("strftime_now", move |args: Rest<ValueOrKwargs>| {
        let [format] = bind("strftime_now", ["format"], &args.into_values())?;
        let format = m.read(&str(&m, &needed("strftime_now", format)?)?)?;
        // A format may have other words in it.
        let said = format.iter().any(|(_, said)| *said);
        let time = strftime(&format.into_iter().map(|(c, _)| c).collect::<String>(), &now)?;
        m.write(time.chars().map(|c| (c, said)))
    });
    env
}

/// `joiner`: nothing at its first call, what stands between at all others.
#[derive(Debug)]
struct Joiner {
    between: Value,
    used: AtomicBool,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        bind("joiner", [], args).map(|[]| ())?;
        Ok(if self.used.swap(true, Ordering::Relaxed) { self.between.clone() } else { "".into() })
    }
}

/// `cycler`: its items, one after the other and again.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    at: AtomicUsize,
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.items[self.at.load(Ordering::Relaxed)].clone())
    }

    fn call_method(self: &Arc<Self>, _: &mut State<'_, '_>, method: &str, args: &[Value]) -> Result<Value, Error> {
        bind(method, [], args).map(|[]| ())?;
        let at = self.at.load(Ordering::Relaxed);
        match method {
            "next" => self.at.store((at + 1) % self.items.len(), Ordering::Relaxed),
            "reset" => self.at.store(0, Ordering::Relaxed),
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        }
        Ok(if method == "next" { self.items[at].clone() } else { ().into() })
    }
}
