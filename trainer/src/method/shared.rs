//! What methods with one shared module have in common: a head that grows by the new task's labels,
//! and a stage that goes on from the module and the head of the one before.

use crate::data::{Joined, Prepared};
use crate::fit::{Batches, Outcome, Recipe, Trained};
use crate::method;
use crate::run::{Lesson, Run};
use conpet_formats::bundle::Draft;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::selector::SelectorKind;
use conpet_formats::{Code, Error, Result};

/// One stage of a shared module.
#[derive(Debug)]
pub(super) struct Shared {
    /// The task to learn.
    pub(super) t: usize,
    /// Its name.
    pub(super) name: String,
    /// Labels of the tasks before it: its own follow them in the head.
    pub(super) before: usize,
    /// Labels so far, its own included.
    pub(super) classes: usize,
    /// Its training rows.
    pub(super) data: Prepared,
    /// Module and head of the stage before.
    pub(super) start: Option<Trained>,
    /// What a linear head reads.
    pub(super) feature: FeatureSpec,
    /// There is one to train.
    linear: bool,
}

impl Shared {
    /// Prepares the stage of task `t`.
    ///
    /// # Errors
    /// If the task is of another kind than the first, or answered by text and the method needs labels.
    pub(super) fn begin(run: &Run<'_>, t: usize) -> Result<Self> {
        let task = &run.tasks[t];
        if task.kind != run.tasks[0].kind {
            return Err(Error::new(Code::Unsupported, format!("task {} is of another kind than the first", task.name))
                .hint("one shared module learns classification or generation, not both; use --method dynamic"));
        }
        let before = first_class(run, t);
        let classes = before + task.labels.len();
        let method = run.method()?;
        if method.labelled && task.kind == TaskKind::Generation {
            let text = format!("--method {} needs labels, and task {} is answered by text", method.name, task.name);
            return Err(Error::new(Code::Unsupported, text)
                .hint(format!("methods for tasks answered by text: {}", method::names(|m| !m.labelled))));
        }
        let head = run.bundle.as_ref().and_then(|b| b.manifest().heads.first()).filter(|h| h.kind.is_linear());
        let head = head.map(|h| h.section);
        Ok(Self {
            t,
            name: task.name.clone(),
            before,
            classes,
            data: run.prepare_train(t)?,
            start: if t > 0 { run.stored(0, head) } else { None },
            feature: run.head_feature.clone(),
            linear: classes > 0 && run.linear_head(),
        })
    }

    /// What the head reads, and its labels so far; `None` if there is none to train.
    pub(super) fn head(&self) -> Option<(&FeatureSpec, usize)> {
        self.linear.then_some((&self.feature, self.classes))
    }

    /// The task's rows, numbered as the head numbers them.
    pub(super) fn rows(&self) -> Joined<'_> {
        Joined::of([(&self.data, self.before)])
    }

    /// Training on `rows` from the stage before.
    pub(super) fn lesson<'l>(&'l self, rows: &'l Joined<'_>, recipe: &'l dyn Recipe) -> Lesson<'l> {
        Lesson { start: self.start.as_ref(), recipe, ..Lesson::new(&self.name, rows, self.head()) }
    }

    /// Trains on the task's rows alone; `None` if stopped.
    pub(super) fn fit(&self, run: &Run<'_>, recipe: &dyn Recipe) -> Result<Option<Trained>> {
        done(run.fit(&self.lesson(&self.rows(), recipe))?)
    }

    /// As [`Shared::fit`], on other rows in another order.
    pub(super) fn fit_on(
        &self,
        run: &Run<'_>,
        rows: &Joined<'_>,
        batches: &dyn Batches,
        recipe: &dyn Recipe,
    ) -> Result<Option<Trained>> {
        done(run.fit(&Lesson { batches: Some(batches), ..self.lesson(rows, recipe) })?)
    }

    /// Writes the stage: the module and the head in place of those before, and the task.
    pub(super) fn finish(&self, run: &mut Run<'_>, mut draft: Draft, trained: &Trained) -> Result<Draft> {
        let (t, digest) = (self.t, run.tasks[self.t].digest.clone());
        let tasks: Vec<u32> = (0..=t as u32).collect();
        let module = if t == 0 {
            run.add_module(&mut draft, trained, &run.sites, &digest)?
        } else {
            run.replace_module(&mut draft, 0, trained, &digest)?
        };
        let old = (t > 0).then_some(0);
        let head = if self.classes > 0 { Some(run.add_head(&mut draft, trained, tasks, old)?) } else { None };
        run.add_task(&mut draft, t, Some(module), head);
        draft.manifest.selector.kind = SelectorKind::Single;
        run.account(trained);
        Ok(draft)
    }
}

/// What was trained; `None` if it was stopped.
pub(super) fn done(outcome: Outcome) -> Result<Option<Trained>> {
    match outcome {
        Outcome::Done(t) => Ok(Some(t)),
        Outcome::Stopped => Ok(None),
    }
}

/// The first class of a task within a head over all tasks.
pub(super) fn first_class(run: &Run<'_>, t: usize) -> usize {
    run.tasks[..t].iter().map(|x| x.labels.len()).sum()
}
