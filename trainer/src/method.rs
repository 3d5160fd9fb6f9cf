//! Methods: how a stream is learned. Each combines [`crate::services`] and [`crate::selectors`] in a file of
//! its own, which defines its `Settings` and its `learn`, and is listed here.

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
mod replay;
pub mod sequential;
mod shared;

use crate::services::{Resolved, Services, Stage};
use crate::settings::range::refusal;
use crate::settings::{Group, join};
use crate::stream::Task;
use conpet_formats::bundle::Draft;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::pet::PetSpec;
use conpet_formats::template;
use conpet_formats::{Code, Error, Result};

/// What a method does at one stage: everything from the tasks' rows to the draft of the stage.
pub type Learn = fn(&mut Services<'_>, &Settings, Stage) -> Result<Option<Draft>>;

/// One method.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Its name in flags and reports.
    pub name: &'static str,
    /// Learns one stage; `None` if it was stopped.
    pub learn: Learn,
    /// Those of all methods' settings that have an effect on it.
    pub in_effect: fn(&Settings) -> Vec<&'static str>,
    /// How it differs from a method with a module for each task.
    pub traits: Traits,
}

/// How methods differ.
#[derive(Debug, Clone, Copy)]
pub struct Traits {
    /// It learns all tasks in one stage.
    pub at_once: bool,
    /// One module serves all tasks, so an input cannot be rendered with its task's template.
    pub shared: bool,
    /// It trains a linear head, so it supports neither generation tasks nor `--head choice`.
    pub labelled: bool,
    /// It replays rows of earlier tasks.
    pub replays: bool,
    /// A selector chooses among its modules.
    pub selects: bool,
    /// Static ConPET: tasks after the first are trained on a mixture of old and new rows for a fixed
    /// number of steps.
    pub fixed: bool,
    /// Fails for a module that it cannot train.
    pub fits: fn(&PetSpec) -> Result<()>,
}

const OWN: Traits = Traits {
    at_once: false,
    shared: false,
    labelled: false,
    replays: false,
    selects: false,
    fixed: false,
    fits: |_| Ok(()),
};
const SHARED: Traits = Traits { shared: true, ..OWN };
const LABELLED: Traits = Traits { labelled: true, ..SHARED };
const REPLAYS: Traits = Traits { replays: true, ..SHARED };
const REPLAYS_LABELLED: Traits = Traits { replays: true, ..LABELLED };

/// Lists the methods: `file: "name" traits, ..;` for each file, which may hold several.
macro_rules! methods {
    ($($file:ident: $($name:literal $traits:expr),+;)*) => {
        join! {
            /// The settings of all methods.
            Settings Flags { $(
                #[doc = concat!("Those of `", stringify!($file), "`.")]
                $file: $file::Settings,
            )* }
        }

        /// All methods.
        pub const METHODS: &[Method] = &[$($(Method {
            name: $name,
            learn: |services, all, stage| $file::learn(services, &all.$file, stage),
            in_effect: |all| all.$file.in_effect(),
            traits: $traits,
        },)+)*];
    };
}

methods! {
    dynamic: "dynamic" Traits { selects: true, ..OWN };
    per_task: "per-task" OWN;
    sequential: "sequential" SHARED;
    joint: "joint" Traits { at_once: true, ..SHARED };
    ewc: "ewc" SHARED;
    lwf: "lwf" LABELLED;
    o_lora: "o-lora" Traits { fits: o_lora::fits, ..SHARED };
    lae: "lae" Traits { fits: lae::fits, ..LABELLED };
    emr: "emr" REPLAYS, "static-emr" Traits { fixed: true, ..REPLAYS };
    ea_emr: "ea-emr" REPLAYS_LABELLED, "static-ea-emr" Traits { fixed: true, ..REPLAYS_LABELLED };
    crl: "crl" REPLAYS_LABELLED, "static-crl" Traits { fixed: true, ..REPLAYS_LABELLED };
}

/// Names of the methods with these traits, for messages.
pub fn names(which: impl Fn(&Traits) -> bool) -> String {
    METHODS.iter().filter(|m| which(&m.traits)).map(|m| m.name).collect::<Vec<_>>().join(", ")
}

/// The method with this name.
///
/// # Errors
/// If there is none; the message lists those there are.
pub fn by_name(name: &str) -> Result<Method> {
    METHODS.iter().copied().find(|m| m.name == name).ok_or_else(|| refusal("method", &name, &names(|_| true)))
}

impl Method {
    /// Checks that it can train the module and head that the settings ask for.
    ///
    /// # Errors
    /// Names the setting and the method.
    pub fn check(&self, resolved: &Resolved) -> Result<()> {
        if self.traits.labelled && !resolved.head.is_linear() {
            let others = names(|m| !m.labelled);
            let allowed = format!("linear with --method {}, any with {others}", self.name);
            return Err(refusal("head", &resolved.head.name(), &allowed));
        }
        (self.traits.fits)(&resolved.module.pet)
    }

    /// Checks that it can learn these tasks, before anything is trained.
    ///
    /// # Errors
    /// Names the task, the reason, and methods that can learn it.
    pub fn check_tasks(&self, tasks: &[Task]) -> Result<()> {
        let refuse = |what: String, hint: &str| Err(Error::new(Code::Unsupported, what).hint(hint));
        let Some(first) = tasks.first().filter(|_| self.traits.shared) else { return Ok(()) };
        let name = self.name;
        if let Some(t) = tasks.iter().find(|t| t.kind != first.kind) {
            let what = format!("--method {name}: task {} has another kind than the first", t.name);
            return refuse(
                what,
                "one shared module learns classification or generation, not both; use --method dynamic",
            );
        }
        if self.traits.labelled && first.kind == TaskKind::Generation {
            let what = format!("--method {name} needs labels, and task {} generates text", first.name);
            return refuse(what, &format!("methods for tasks that generate text: {}", names(|m| !m.labelled)));
        }
        if let Some(t) = tasks.iter().find(|t| t.kind == TaskKind::Generation && t.template != first.template) {
            let what = format!("--method {name}: task {} has another template than the first", t.name);
            return refuse(
                what,
                "one shared module answers without knowing the task: give all tasks one template, or use --method dynamic",
            );
        }
        Ok(())
    }

    /// Tasks as the method learns them. One shared module answers without knowing the task, so inputs cannot be
    /// rendered with their tasks' templates: labels are learned from bare inputs.
    ///
    /// # Errors
    /// See [`Method::check_tasks`].
    pub fn tasks(&self, mut tasks: Vec<Task>) -> Result<Vec<Task>> {
        self.check_tasks(&tasks)?;
        if self.traits.shared {
            let labelled = tasks.iter_mut().filter(|t| t.kind == TaskKind::Classification);
            labelled.for_each(|t| t.template = template::INPUT.into());
        }
        Ok(tasks)
    }
}
