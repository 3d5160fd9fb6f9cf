//! The common part of methods with one shared module: a head that grows by the new task's labels, and a stage
//! that continues from the module and the head of the one before.

use crate::data::{Joined, Prepared};
use crate::fit::{Batches, Outcome, Recipe, Trained};
use crate::services::{Lesson, ModulePlan, Services};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::selector::SelectorKind;

/// One stage of a shared module.
#[derive(Debug)]
pub(super) struct Shared {
    /// Index of the task to learn.
    pub(super) t: usize,
    /// Name of the task.
    pub(super) name: String,
    /// Number of labels of the tasks before it; its own follow them in the head.
    pub(super) before: usize,
    /// Number of labels so far, its own included.
    pub(super) classes: usize,
    /// Training rows of the task.
    pub(super) data: Prepared,
    /// Module and head of the stage before, if there is one.
    pub(super) start: Option<Trained>,
    /// The module's spec and sites.
    pub(super) module: ModulePlan,
    /// The feature that a linear head reads.
    pub(super) feature: FeatureSpec,
    /// Whether there is a linear head to train.
    linear: bool,
}

impl Shared {
    /// Prepares the stage of task `t`.
    ///
    /// # Errors
    /// If its rows cannot be prepared.
    pub(super) fn begin(services: &Services<'_>, t: usize) -> Result<Self> {
        let task = &services.tasks()[t];
        let before = services.first_class(t);
        let classes = before + task.labels.len();
        let head = services.bundle().and_then(|b| b.manifest().heads.first()).filter(|h| h.kind.is_linear());
        let head = head.map(|h| h.section);
        Ok(Self {
            t,
            name: task.name.clone(),
            before,
            classes,
            data: services.prepare_train(t)?,
            start: if t > 0 { services.stored(0, head) } else { None },
            feature: services.head_feature().clone(),
            module: services.module().clone(),
            linear: classes > 0 && services.linear_head(),
        })
    }

    /// The head's feature and its number of labels so far; `None` if there is no head to train.
    pub(super) fn head(&self) -> Option<(&FeatureSpec, usize)> {
        self.linear.then_some((&self.feature, self.classes))
    }

    /// The task's rows, with their classes numbered as in the head.
    pub(super) fn rows(&self) -> Joined<'_> {
        Joined::of([(&self.data, self.before)])
    }

    /// A lesson that trains on `rows`, continuing from the stage before.
    pub(super) fn lesson<'l>(&'l self, rows: &'l Joined<'_>, recipe: &'l dyn Recipe) -> Lesson<'l> {
        Lesson {
            module: Some(&self.module),
            start: self.start.as_ref(),
            recipe,
            ..Lesson::new(&self.name, rows, self.head())
        }
    }

    /// Trains on the task's rows alone; `None` if stopped.
    pub(super) fn fit(&self, services: &Services<'_>, recipe: &dyn Recipe) -> Result<Option<Trained>> {
        done(services.fit(&self.lesson(&self.rows(), recipe))?)
    }

    /// As [`Shared::fit`], on other rows in another order.
    pub(super) fn fit_on(
        &self,
        services: &Services<'_>,
        rows: &Joined<'_>,
        batches: &dyn Batches,
        recipe: &dyn Recipe,
    ) -> Result<Option<Trained>> {
        done(services.fit(&Lesson { batches: Some(batches), ..self.lesson(rows, recipe) })?)
    }

    /// Completes the draft: the module and the head replace those before, and the task is added.
    pub(super) fn finish(&self, services: &mut Services<'_>, mut draft: Draft, trained: &Trained) -> Result<Draft> {
        let (t, digest) = (self.t, services.tasks()[self.t].digest.clone());
        let tasks: Vec<u32> = (0..=t as u32).collect();
        let module = if t == 0 {
            services.add_module(&mut draft, trained, &self.module, &digest)?
        } else {
            services.replace_module(&mut draft, 0, trained, &self.module, &digest)?
        };
        let old = (t > 0).then_some(0);
        let head = if self.classes > 0 { Some(services.add_head(&mut draft, trained, tasks, old)?) } else { None };
        services.add_task(&mut draft, t, Some(module), head);
        draft.manifest.selector.kind = SelectorKind::Single;
        services.account(trained);
        Ok(draft)
    }
}

/// The result of training; `None` if it was stopped.
pub(super) fn done(outcome: Outcome) -> Result<Option<Trained>> {
    match outcome {
        Outcome::Done(t) => Ok(Some(t)),
        Outcome::Stopped => Ok(None),
    }
}
