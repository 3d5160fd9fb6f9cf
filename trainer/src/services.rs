//! The services that methods and selectors combine: prepared rows with their trunk states, training, entries of
//! a bundle's next stage, memory from stage to stage, calibration, and replay.
//!
//! Each service is one file. Nothing here depends on a method or a selector; [`crate::run`] is the loop above them.

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
    /// The settings of preparing, training and storing, for all methods.
    Settings Flags {
        /// What a module is.
        module: module::Settings,
        /// Defaults for a LoRA whose spec does not say.
        lora: module::LoraSettings,
        /// How labels are scored.
        head: module::HeadSettings,
        /// How a module is trained.
        training: lesson::Settings,
        /// Which rows are used, and how much of each.
        rows: prepare::Settings,
        /// Which rows of earlier tasks are replayed.
        replay: replay::Settings,
    }
}

impl Settings {
    /// Steps of a training run on a mixture of new and old rows: the same for every task.
    pub fn budget(&self) -> u64 {
        self.training.epochs as u64 * (self.replay.replay_limit * 4 / 5).max(1)
    }

    /// The settings resolved for a base.
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

/// The settings resolved for a base.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// Number of layers of the trunk.
    pub trunk: usize,
    /// The kind of head.
    pub head: HeadKind,
    /// The feature that heads read.
    pub head_feature: FeatureSpec,
    /// Spec and sites of a new module.
    pub module: ModulePlan,
}

/// Progress of a run, as reported to its caller.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    /// A piece of work of this name begins.
    Begin(&'a str),
    /// A training step is done.
    Step(&'a str, Progress),
    /// A stage was written and scored.
    Stage(usize, &'a StageScores),
}

/// A stage to be learned.
#[derive(Debug)]
pub struct Stage {
    /// Index of the task to learn; 0 for methods that learn all tasks at once.
    pub task: usize,
    /// The stage to extend: the bundle's last one.
    pub draft: Draft,
    /// Tasks after the first are trained for a fixed number of steps on a mixture of old and new rows.
    pub fixed: bool,
}

/// The inputs of a run.
pub struct Materials<'a> {
    /// The base's engine.
    pub engine: &'a Engine,
    /// Tasks in order; those of the bundle come first.
    pub tasks: Vec<Task>,
    /// The feature that the selector reads from the trunk, if any.
    pub selector_feature: Option<FeatureSpec>,
    /// The bundle's last stage, if there is one.
    pub bundle: Option<Bundle>,
    /// A folder for trunk states, checkpoints and what methods remember.
    pub work: PathBuf,
    /// Set to stop after the current step.
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
    /// Prepared rows of earlier tasks for replay, by task.
    replayed: BTreeMap<usize, Arc<Prepared>>,
    on_event: RefCell<Box<dyn FnMut(Event<'_>) + 'a>>,
}

impl<'a> Services<'a> {
    /// Creates the work folder and prepares the frozen layers.
    ///
    /// # Errors
    /// If training does not support the base's family, a setting is out of range, or the folder cannot be created.
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

    /// The shape of the base.
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

    /// Number of layers of the trunk.
    pub fn trunk(&self) -> usize {
        self.resolved.trunk
    }

    /// Spec and sites of a new module.
    pub fn module(&self) -> &ModulePlan {
        &self.resolved.module
    }

    /// The feature that heads read.
    pub fn head_feature(&self) -> &FeatureSpec {
        &self.resolved.head_feature
    }

    /// The feature that the selector reads from the trunk, if any.
    pub fn selector_feature(&self) -> Option<&FeatureSpec> {
        self.selector_feature.as_ref()
    }

    /// The first class of a task within a head over all tasks.
    pub fn first_class(&self, t: usize) -> usize {
        self.tasks[..t].iter().map(|x| x.labels.len()).sum()
    }

    /// Reports progress to the caller.
    pub fn tell(&self, event: Event<'_>) {
        (self.on_event.borrow_mut())(event);
    }

    /// The draft that the next stage begins with: the bundle's last stage, or an empty one on this base.
    ///
    /// # Errors
    /// If the base cannot be read.
    pub fn draft(&self, method: &str) -> Result<Draft> {
        let Some(bundle) = &self.bundle else {
            let base = &self.engine.base;
            let reference = fingerprint::base_ref(&base.gguf()?).map_err(|e| e.in_file(base.path()))?;
            return Ok(Draft::new(reference, method, self.trunk() as u32));
        };
        Ok(Draft::from_bundle(bundle))
    }

    /// Continues from this stage, just written or found in the bundle.
    pub fn go_on_from(&mut self, bundle: Bundle) {
        self.bundle = Some(bundle);
    }

    /// The cost of the run so far.
    pub fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Sets the cost so far: that of an earlier process of the run, or that from before an unfinished stage.
    pub fn count_from(&mut self, usage: Usage) {
        self.usage = usage;
    }

    /// Adds the cost of a training to that of the run.
    pub fn account(&mut self, t: &Trained) {
        self.usage.trained_tokens += t.tokens;
        self.usage.stages.push(StageCost { steps: t.steps, rows: t.rows, tokens: t.tokens });
        self.usage.training_seconds += t.seconds;
        self.usage.trainable = self.usage.trainable.max(t.trainable as u64);
    }
}
