//! Methods: how a stream is learned. Each is a recipe over [`crate::fit`] and
//! [`crate::selectors`], in a file of its own, and listed here.

pub mod crl;
pub mod dynamic;
pub mod ea_emr;
pub mod emr;
pub mod ewc;
pub mod joint;
pub mod lae;
pub mod lwf;
pub mod o_lora;
pub mod per_task;
pub(crate) mod replay;
pub mod sequential;
mod shared;

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
    /// One module serves all tasks, so no task's own template can be around an input.
    pub shared: bool,
    /// It trains a linear head, so it learns neither tasks answered by text nor `--head choice`.
    pub labelled: bool,
    /// Static ConPET: tasks after the first are trained on a mixture of old and new rows for a fixed
    /// number of steps.
    pub fixed: bool,
}

const fn own(name: &'static str, learn: Learn) -> Method {
    Method { name, learn, at_once: false, shared: false, labelled: false, fixed: false }
}

const fn shared(name: &'static str, learn: Learn) -> Method {
    Method { shared: true, ..own(name, learn) }
}

const fn labelled(name: &'static str, learn: Learn) -> Method {
    Method { labelled: true, ..shared(name, learn) }
}

/// All methods.
pub const METHODS: &[Method] = &[
    own("dynamic", dynamic::learn),
    own("per-task", per_task::learn),
    shared("sequential", sequential::learn),
    Method { at_once: true, ..shared("joint", joint::learn) },
    shared("ewc", ewc::learn),
    labelled("lwf", lwf::learn),
    shared("o-lora", o_lora::learn),
    labelled("lae", lae::learn),
    shared("emr", emr::learn),
    labelled("ea-emr", ea_emr::learn),
    labelled("crl", crl::learn),
    Method { fixed: true, ..shared("static-emr", emr::learn) },
    Method { fixed: true, ..labelled("static-ea-emr", ea_emr::learn) },
    Method { fixed: true, ..labelled("static-crl", crl::learn) },
];

/// Names of those that are so, for messages.
pub fn names(which: impl Fn(&Method) -> bool) -> String {
    METHODS.iter().filter(|m| which(m)).map(|m| m.name).collect::<Vec<_>>().join(", ")
}

/// The method with this name.
pub fn by_name(name: &str) -> Option<Method> {
    METHODS.iter().copied().find(|m| m.name == name)
}
