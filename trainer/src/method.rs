//! Methods: how a stream is learned. Each is a recipe over [`crate::fit`] and
//! [`crate::selectors`], in a file of its own, and listed here.

pub mod dynamic;
pub mod joint;
pub mod sequential;

use crate::run::{Run, Stage};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;

/// What a method does at one stage: everything from the tasks' rows to a draft to be written.
pub type Learn = fn(&mut Run<'_>, Stage) -> Result<Option<Draft>>;

/// One method.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Its name in flags and reports.
    pub name: &'static str,
    /// Learns one stage; `None` if it was stopped.
    pub learn: Learn,
    /// It learns all tasks in one stage.
    pub at_once: bool,
}

/// All methods.
pub const METHODS: [Method; 3] = [
    Method { name: "dynamic", learn: dynamic::learn, at_once: false },
    Method { name: "sequential", learn: sequential::learn, at_once: false },
    Method { name: "joint", learn: joint::learn, at_once: true },
];

/// Their names.
pub const NAMES: [&str; 3] = [METHODS[0].name, METHODS[1].name, METHODS[2].name];

/// The method with this name.
pub fn by_name(name: &str) -> Option<Method> {
    METHODS.into_iter().find(|m| m.name == name)
}
