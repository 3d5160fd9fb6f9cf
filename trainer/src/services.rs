//! What methods and selectors are recipes over: rows with their trunk states, training, entries of a
//! bundle's next stage, memory from stage to stage, calibration, rows to train on again.
//!
//! One file each. Nothing here knows a method or a selector; [`crate::run`] leads them all.

mod calibrate;
mod entries;
mod keep;
pub mod lesson;
pub mod module;
pub mod prepare;
pub mod replay;
pub mod temperature;
pub mod usage;

pub use keep::Kept;
pub use lesson::Lesson;
pub use module::ModulePlan;

use crate::data::Prepared;
use crate::decoder::Decoder;
use crate::fit::{Progress, Trained};
use crate::metrics::StageScores;
use crate::settings::range::refusal;
use crate::settings::{Group, join};
use crate::stream::Task;
use conpet_formats::bundle::{Bundle, Draft};
use conpet_formats::feature::FeatureSpec;
use conpet_formats::head::HeadKind;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::{Code, Error, Result, fingerprint};
use conpet_runtime::engine::Engine;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use usage::{StageCost, Usage};

join! {
    /// The settings of preparing, training and storing, whatever the method.
    Settings Flags {
        /// What a module is.
        module: module::Settings,
        /// What a LoRA is, where its spec does not say.
        lora: module::LoraSettings,
        /// What labels are told apart by.
        head: module::HeadSettings,
        /// How a module is trained.
        training: lesson::Settings,
        /// Which rows are read, and how much of each.
        rows: prepare::Settings,
        /// Which rows are trained on again.
        replay: replay::Settings,
    }
}

impl Settings {
    /// Steps of a training run on a mixture of new and old rows: the same for every task.
    pub fn budget(&self) -> u64 {
        self.training.epochs as u64 * (self.replay.replay_limit * 4 / 5).max(1)
    }

    /// What the settings mean for a base.
    ///
    /// # Errors
    /// If a value is out of its range, or does not fit the others or the base.
    pub fn resolve(&self, spec: &ModelSpec) -> Result<Resolved> {
        self.check()?;
        if self.rows.max_len > spec.context {
            let allowed = format!("8 to the base's context of {}", spec.context);
            return Err(refusal("max_len", &self.rows.max_len, &allowed));
        }
        let trunk = self.module.trunk(spec)?;
        Ok(Resolved {
            trunk,
            head: self.head.kind()?,
            head_feature: self.head.feature(spec, trunk)?,
            module: ModulePlan::above(self.module.pet(&self.lora, spec)?, spec, trunk)?,
        })
    }
}

/// What the settings mean for a base.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Layers of the trunk.
    pub trunk: usize,
    /// How labels are told apart.
    pub head: HeadKind,
    /// What heads read.
    pub head_feature: FeatureSpec,
    /// What a new module is.
    pub module: ModulePlan,
}

/// What a run tells its caller while it works.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// A piece of work begins.
    Begin(&'a str),
    /// A training step is done.
    Step(&'a str, Progress),
    /// A stage was written and scored.
    Stage(usize, &'a StageScores),
}

/// A stage to be learned.
#[derive(Debug)]
pub struct Stage {
    /// The task to learn (an index into the run's tasks); 0 for methods that learn all at once.
    pub task: usize,
    /// The stage so far: the bundle's last one.
    pub draft: Draft,
    /// Tasks after the first are trained for a fixed number of steps on a mixture of old and new rows.
    pub fixed: bool,
}

/// What a run works on.
pub struct Materials<'a> {
    /// The base's engine.
    pub engine: &'a Engine,
    /// Tasks in order; those of the bundle come first.
    pub tasks: Vec<Task>,
    /// What the selector reads of the trunk, where it reads anything.
    pub selector_feature: Option<FeatureSpec>,
    /// The bundle's last stage, if there is one.
    pub bundle: Option<Bundle>,
    /// A folder for trunk states, checkpoints and what methods remember.
    pub work: PathBuf,
    /// Set to stop after the step under way.
    pub stop: &'a AtomicBool,
}

/// The services of one run.
pub struct Services<'a> {
    settings: Settings,
    resolved: Resolved,
    engine: &'a Engine,
    tasks: Vec<Task>,
    selector_feature: Option<FeatureSpec>,
    bundle: Option<Bundle>,
    decoder: Decoder,
    pool: rayon::ThreadPool,
    work: PathBuf,
    stop: &'a AtomicBool,
    usage: Usage,
    /// Rows of earlier tasks that methods train on again, by task.
    replayed: BTreeMap<usize, Arc<Prepared>>,
    on_event: RefCell<Box<dyn FnMut(Event<'_>) + 'a>>,
}

impl<'a> Services<'a> {
    /// Makes a folder for the work, and the frozen layers ready.
    ///
    /// # Errors
    /// If the base is of a family that is not trained, a setting is out of range, or the folder cannot be made.
    pub fn new(settings: &Settings, m: Materials<'a>, on_event: impl FnMut(Event<'_>) + 'a) -> Result<Self> {
        let spec = &m.engine.base.spec;
        let resolved = settings.resolve(spec)?;
        std::fs::create_dir_all(&m.work).map_err(|e| Error::io("create", e).in_file(&m.work))?;
        let decoder = Decoder::new(m.engine, resolved.trunk, settings.training.weights.mode());
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(decoder.threads)
            .build()
            .map_err(|e| Error::new(Code::Io, format!("cannot start {} threads: {e}", decoder.threads)))?;
        Ok(Self {
            settings: settings.clone(),
            resolved,
            engine: m.engine,
            tasks: m.tasks,
            selector_feature: m.selector_feature,
            bundle: m.bundle,
            decoder,
            pool,
            work: m.work,
            stop: m.stop,
            usage: Usage::default(),
            replayed: BTreeMap::new(),
            on_event: RefCell::new(Box::new(on_event)),
        })
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The base's engine.
    pub fn engine(&self) -> &'a Engine {
        self.engine
    }

    /// What the base is.
    pub fn spec(&self) -> &'a ModelSpec {
        &self.engine.base.spec
    }

    /// Tasks in order; those before the current stage are in the bundle.
    pub fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    /// The last stage written, if any.
    pub fn bundle(&self) -> Option<&Bundle> {
        self.bundle.as_ref()
    }

    /// Layers of the trunk.
    pub fn trunk(&self) -> usize {
        self.resolved.trunk
    }

    /// What a new module is.
    pub fn module(&self) -> &ModulePlan {
        &self.resolved.module
    }

    /// What heads read.
    pub fn head_feature(&self) -> &FeatureSpec {
        &self.resolved.head_feature
    }

    /// What the selector reads of the trunk, where it reads anything.
    pub fn selector_feature(&self) -> Option<&FeatureSpec> {
        self.selector_feature.as_ref()
    }

    /// The first class of a task within a head over all tasks.
    pub fn first_class(&self, t: usize) -> usize {
        self.tasks[..t].iter().map(|x| x.labels.len()).sum()
    }

    /// Tells the caller what is being done.
    pub fn tell(&self, event: Event<'_>) {
        (self.on_event.borrow_mut())(event);
    }

    /// The next stage as it begins: the bundle's last one, or nothing at all on this base.
    ///
    /// # Errors
    /// If the base cannot be read.
    pub fn draft(&self, method: &str) -> Result<Draft> {
        let Some(bundle) = &self.bundle else {
            let base = &self.engine.base;
            let reference = fingerprint::base_ref(&base.gguf()?, base.map()).map_err(|e| e.in_file(base.path()))?;
            return Ok(Draft::new(reference, method, self.trunk() as u32));
        };
        Ok(Draft::from_bundle(bundle))
    }

    /// Goes on from a stage that was written or found.
    pub fn go_on_from(&mut self, bundle: Bundle) {
        self.bundle = Some(bundle);
    }

    /// What the run has cost so far.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Counts from here on: what an earlier process of the run cost, or what was counted before a stage
    /// that was not finished.
    pub fn count_from(&mut self, usage: Usage) {
        self.usage = usage;
    }

    /// Adds what training cost to the run's account.
    pub fn account(&mut self, t: &Trained) {
        self.usage.trained_tokens += t.tokens;
        self.usage.stages.push(StageCost { steps: t.steps, rows: t.rows, tokens: t.tokens });
        self.usage.training_seconds += t.seconds;
        self.usage.trainable = self.usage.trainable.max(t.trainable as u64);
    }
}
