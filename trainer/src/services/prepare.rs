//! Prepares rows: in the task's template for training and its head, bare for the selector.

use super::{Event, Services};
use crate::data::{Plan, Prepared};
use crate::settings::range::{any, such};
use crate::settings::settings;
use crate::stream::{Goal, Row, Task};
use conpet_formats::Result;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::quant::QuantType;
use conpet_formats::template;

settings! { "Rows" Settings Flags {
    /// Longest row, in tokens.
    max_len: usize = 256, such("8 to the base's context", |n| *n >= 8);
    /// Most training rows of each class (of the task, for generation); 0 keeps all.
    subset: usize = 0, any();
    /// Most validation and test rows of each class (of the task, for generation); 0 keeps all.
    test_subset: usize = 0, any();
}}

/// A split of a task's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// Rows to train on.
    Train,
    /// Validation rows, to choose settings with.
    Valid,
    /// Test rows, to report on.
    Test,
}

impl Split {
    /// Its name in file names and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }

    fn rows(self, task: &Task) -> &[Row] {
        match self {
            Self::Train => &task.train,
            Self::Valid => &task.valid,
            Self::Test => &task.test,
        }
    }
}

impl Services<'_> {
    fn plan(&self, task: usize, keep: QuantType) -> Plan<'_> {
        Plan {
            trunk: self.trunk(),
            selector: self.selector_feature(),
            head: (self.tasks[task].kind == TaskKind::Classification).then(|| self.head_feature()),
            max_len: self.settings.rows.max_len,
            says_labels: false,
            keep,
        }
    }

    /// The plan for rows to train on.
    fn training_plan(&self, task: usize) -> Plan<'_> {
        Plan { says_labels: !self.linear_head(), ..self.plan(task, QuantType::F16) }
    }

    fn prepared(&self, task: &Task, rows: &[Row], plan: Plan<'_>, name: &str) -> Result<Prepared> {
        self.tell(Event::Begin(&format!("trunk pass over {name}")));
        let file = self.work.join(format!("{}.states", name.replace(['/', ' '], "-")));
        let file = (!rows.is_empty()).then_some(file.as_path());
        Prepared::new(self.engine, task, rows, plan, file, &mut |_| {})
    }

    /// All of a task's training rows with their trunk states.
    ///
    /// # Errors
    /// See [`Prepared::new`], here and for the others.
    pub fn prepare_train(&self, t: usize) -> Result<Prepared> {
        let task = &self.tasks[t];
        self.prepared(task, &task.train, self.training_plan(t), &format!("{} train", task.name))
    }

    /// A task's training rows to replay: those with these indices, or all.
    pub(super) fn prepare_replay(&self, t: usize, rows: Option<&[usize]>) -> Result<Prepared> {
        let task = &self.tasks[t];
        let some: Option<Vec<Row>> = rows.map(|rows| rows.iter().map(|i| task.train[*i].clone()).collect());
        let rows = some.as_deref().unwrap_or(&task.train);
        self.prepared(task, rows, self.training_plan(t), &format!("{} replay", task.name))
    }

    /// A task's validation rows: in the task's template for the head, with the selector's features of the bare
    /// inputs. For a generation task only those features are used.
    pub fn prepare_valid(&self, t: usize) -> Result<Prepared> {
        if self.tasks[t].kind == TaskKind::Generation {
            return self.prepare_bare(t, Split::Valid);
        }
        let task = &self.tasks[t];
        self.prepared(task, &task.valid, self.plan(t, QuantType::F32), &format!("{} valid", task.name))
    }

    /// A task's test rows, in the task's template.
    pub fn prepare_test(&self, t: usize) -> Result<Prepared> {
        let task = &self.tasks[t];
        self.prepared(task, &task.test, self.plan(t, QuantType::F32), &format!("{} test", task.name))
    }

    /// A task's rows as bare inputs, without template or answer, as the selector reads them.
    pub fn prepare_bare(&self, t: usize, split: Split) -> Result<Prepared> {
        let (task, rows) = bare(&self.tasks[t], split);
        let keep = if split == Split::Train { QuantType::F16 } else { QuantType::F32 };
        self.prepared(&task, &rows, self.plan(t, keep), &format!("{} {} bare", task.name, split.name()))
    }

    /// Inputs of no task, as bare inputs.
    pub fn prepare_strangers(&self, rows: &[Row]) -> Result<Prepared> {
        let (task, _) = bare(&self.tasks[0], Split::Test);
        self.prepared(&task, rows, self.plan(0, QuantType::F32), "inputs of no task")
    }
}

/// A task and one of its splits as bare inputs.
pub fn bare(task: &Task, split: Split) -> (Task, Vec<Row>) {
    let strip = |r: &Row| match &r.goal {
        Goal::Label(_) => r.clone(),
        Goal::Completion(_) => Row { text: r.text.clone(), goal: Goal::Label(String::new()), chat: Vec::new() },
    };
    let rows = split.rows(task).iter().map(strip).collect();
    (Task { template: template::INPUT.into(), ..task.clone() }, rows)
}
