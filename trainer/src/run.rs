//! Leads a run: stream, features, fit, selector, bundle, evaluation, report.
//!
//! Methods are recipes over what [`Run`] offers. After each task a stage is appended to the
//! bundle and scored; a run that was stopped goes on from the last stage and, within a task, from
//! the last checkpoint.

mod calibrate;
mod entries;
mod keep;
mod lesson;

pub use keep::Kept;
pub use lesson::Lesson;
pub(crate) use lesson::lens;

use crate::config::Config;
use crate::data::{Plan, Prepared};
use crate::decoder::{Decoder, WeightMode};
use crate::evaluate::{Evaluator, TestSet};
use crate::fit::{Progress, Trained};
use crate::method::{self, Method};
use crate::metrics::StageScores;
use crate::report::{MethodReport, StageCost, Usage};
use crate::selectors;
use crate::stream::{Goal, Row, Task};
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::bundle::{Bundle, Draft};
use conpet_formats::feature::FeatureSpec;
use conpet_formats::fingerprint;
use conpet_formats::pet::PetSpec;
use conpet_formats::quant::QuantType;
use conpet_formats::{Code, Error, Result};
use conpet_runtime::engine::Engine;
use conpet_runtime::memory::Memory;
use conpet_runtime::skills::Skills;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// Most bytes of dense frozen weights that `--weights auto` spends.
const DENSE_MOST: usize = 1 << 30;

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
}

/// A run under way.
pub struct Run<'a> {
    /// The settings.
    pub config: Config,
    /// The base's engine.
    pub engine: &'a Engine,
    /// Tasks in order; those before the current stage are in the bundle.
    pub tasks: Vec<Task>,
    /// The last stage written, if any.
    pub bundle: Option<Bundle>,
    /// What heads read.
    pub head_feature: FeatureSpec,
    /// What the selector reads.
    pub selector_feature: FeatureSpec,
    /// What new modules are.
    pub pet: PetSpec,
    /// Their sites.
    pub sites: Vec<String>,
    /// Inputs of no task, to see at each stage whether the selector notices them.
    pub strangers: Vec<Row>,
    decoder: Decoder,
    pool: rayon::ThreadPool,
    out: PathBuf,
    work: PathBuf,
    stop: &'a AtomicBool,
    usage: Usage,
    /// Rows of earlier tasks that methods train on again, by task.
    replayed: BTreeMap<usize, Arc<Prepared>>,
    on_event: RefCell<Box<dyn FnMut(Event<'_>) + 'a>>,
}

impl<'a> Run<'a> {
    /// Prepares a run that writes to `out`, with its checkpoints in `<out>.work`.
    ///
    /// # Errors
    /// If a setting is out of range or the work folder cannot be made.
    pub fn new(
        config: Config,
        engine: &'a Engine,
        mut tasks: Vec<Task>,
        out: &Path,
        stop: &'a AtomicBool,
        on_event: impl FnMut(Event<'_>) + 'a,
    ) -> Result<Self> {
        let spec = &engine.base.spec;
        config.check(spec)?;
        tasks.iter_mut().for_each(|t| t.subset(config.subset, config.test_subset));
        if method::by_name(&config.method).is_some_and(|m| m.shared) {
            one_template(&mut tasks)?;
        }
        let work = out.with_extension("work");
        std::fs::create_dir_all(&work).map_err(|e| Error::io("create", e).in_file(&work))?;
        let mode = match config.weights.as_str() {
            "dense" => WeightMode::Dense,
            "quant" => WeightMode::Quant,
            _ => WeightMode::Auto(DENSE_MOST),
        };
        let decoder = Decoder::new(engine, config.trunk(spec), mode);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(decoder.threads)
            .build()
            .map_err(|e| Error::new(Code::Io, format!("cannot start {} threads: {e}", decoder.threads)))?;
        Ok(Self {
            head_feature: config.head_feature(spec)?,
            selector_feature: config.selector_feature(spec)?,
            pet: config.pet(spec)?,
            sites: config.sites(spec)?,
            strangers: Vec::new(),
            bundle: None,
            decoder,
            pool,
            out: out.to_owned(),
            work,
            stop,
            usage: Usage::default(),
            replayed: BTreeMap::new(),
            on_event: RefCell::new(Box::new(on_event)),
            config,
            engine,
            tasks,
        })
    }

    /// Learns the whole stream; with `resume`, goes on where the bundle and its work folder stand.
    /// `None` if it was stopped.
    ///
    /// # Errors
    /// If the bundle exists and `resume` is false, or holds other tasks than the stream's.
    pub fn stream(&mut self, resume: bool) -> Result<Option<MethodReport>> {
        let method = self.method()?;
        let begin = Instant::now();
        let stages = self.tasks.len();
        let done = self.resume_point(resume, method)?;
        if resume {
            self.usage = self.earlier_usage();
        }
        let before = self.usage.seconds;
        let mut evaluator = Evaluator::default();
        if !self.strangers.is_empty() {
            let (task, _) = bare(&self.tasks[0], "test");
            evaluator.set_strangers(self.prepared(
                &task,
                &self.strangers,
                self.plan(0, QuantType::F32),
                "inputs of no task",
            )?);
        }
        let mut scores: Vec<StageScores> = Vec::new();
        for t in 0..stages {
            let learned = t < done || method.at_once && t > 0;
            let set = self.test_set(t)?;
            evaluator.add(set);
            if !learned {
                let account = self.usage.clone();
                let draft = (method.learn)(self, Stage { task: t, draft: self.draft()? })?;
                if draft.is_none() {
                    // What was finished of this stage stands in its checkpoints and is counted when it is done.
                    self.usage = account;
                }
                self.usage.seconds = before + begin.elapsed().as_secs_f64();
                let written = draft.map(|d| self.write(d)).transpose()?;
                self.keep_usage()?;
                if written.is_none() {
                    return Ok(None);
                }
            }
            if self.config.score != "stages" && t + 1 < stages {
                continue;
            }
            let kept = self.work.join(format!("scores-{}.json", t + 1));
            if let Some(s) = kept_scores(&kept, t + 1).filter(|_| learned) {
                scores.push(s);
                continue;
            }
            // As the stage stands in the chain. Who has learned all at once is asked as if only the
            // tasks so far existed: what it loses from stage to stage is lost to the choice among
            // more classes, not to learning.
            let stage = if method.at_once { 1 } else { t + 1 };
            let bundle = Bundle::open_stage(&self.out, stage as u64)?;
            let s = self.score(&mut evaluator, bundle, t + 1, &kept)?;
            self.tell(Event::Stage(t + 1, &s));
            scores.push(s);
        }
        self.usage.seconds = before + begin.elapsed().as_secs_f64();
        Ok(Some(self.report(&scores)))
    }

    /// Learns the last task only, onto a bundle that holds those before it. `None` if stopped.
    ///
    /// # Errors
    /// If the bundle has a task of that name already, or was learned by a method that cannot grow.
    pub fn add(&mut self) -> Result<Option<StageScores>> {
        let method = self.method()?;
        let t = self.tasks.len() - 1;
        let Some(draft) = (method.learn)(self, Stage { task: t, draft: self.draft()? })? else { return Ok(None) };
        self.write(draft)?;
        let mut evaluator = Evaluator::default();
        evaluator.add(self.test_set(t)?);
        let kept = self.work.join("scores-add.json");
        let bundle = Bundle::open(&self.out)?;
        self.score(&mut evaluator, bundle, t + 1, &kept).map(Some)
    }

    /// What the processes before this one cost, so that a resumed run's report counts them.
    fn earlier_usage(&self) -> Usage {
        let kept = std::fs::read(self.work.join("usage.json")).unwrap_or_default();
        serde_json::from_slice(&kept).unwrap_or_default()
    }

    fn keep_usage(&mut self) -> Result<()> {
        self.usage.peak_rss = self.usage.peak_rss.max(Memory::now().peak);
        let json = serde_json::to_vec(&self.usage).map_err(|e| Error::new(Code::Value, e.to_string()))?;
        let file = self.work.join("usage.json");
        conpet_formats::fs::write_atomic(&file, |w| w.write_all(&json).map_err(|e| Error::io("write", e)))
    }

    pub(crate) fn tell(&self, event: Event<'_>) {
        (self.on_event.borrow_mut())(event);
    }

    /// The method of this run.
    pub(crate) fn method(&self) -> Result<Method> {
        method::by_name(&self.config.method).ok_or_else(|| {
            Error::new(Code::Value, format!("no method {:?}", self.config.method)).hint(method::names(|_| true))
        })
    }

    /// How many stages are already in the bundle.
    fn resume_point(&mut self, resume: bool, method: Method) -> Result<usize> {
        let settings = toml::to_string(&self.config).map_err(|e| Error::new(Code::Value, e.to_string()))?;
        let file = self.work.join("settings.toml");
        if !self.out.exists() {
            // A checkpoint in the work folder is only good for the settings it was made with.
            if !resume {
                let old = std::fs::read_dir(&self.work).map_err(|e| Error::io("list", e).in_file(&self.work))?;
                old.flatten().for_each(|e| drop(std::fs::remove_file(e.path())));
            }
            conpet_formats::fs::write_atomic(&file, |w| {
                w.write_all(settings.as_bytes()).map_err(|e| Error::io("write", e))
            })?;
            return Ok(0);
        }
        if !resume {
            return Err(Error::new(Code::Duplicate, "the bundle already exists")
                .in_file(&self.out)
                .hint("go on with --resume, add a task with conpet-train add, or choose another name"));
        }
        if std::fs::read_to_string(&file).is_ok_and(|old| old != settings) {
            return Err(Error::new(Code::Value, "the settings differ from those this run was begun with")
                .in_file(&file)
                .hint("resume with the same command"));
        }
        let bundle = Bundle::open(&self.out)?;
        let m = bundle.manifest();
        let wrong = m.tasks.iter().zip(&self.tasks).find(|(a, b)| a.name != b.name || a.labels != b.labels);
        if m.method != method.name || m.tasks.len() > self.tasks.len() || wrong.is_some() {
            return Err(Error::new(Code::Value, "the bundle holds another stream or method")
                .in_file(&self.out)
                .hint("resume with the same stream and settings"));
        }
        let done = if method.at_once { 1 } else { m.tasks.len() };
        self.bundle = Some(bundle);
        Ok(done)
    }

    fn draft(&self) -> Result<Draft> {
        match &self.bundle {
            Some(b) => Ok(Draft::from_bundle(b)),
            None => {
                let base = &self.engine.base;
                let reference = fingerprint::base_ref(&base.gguf()?, base.map()).map_err(|e| e.in_file(base.path()))?;
                Ok(Draft::new(reference, &self.config.method, self.config.trunk(&base.spec) as u32))
            }
        }
    }

    /// Creates or appends the stage, then forgets what only this stage needed.
    fn write(&mut self, draft: Draft) -> Result<()> {
        // What was learned on a base that has vanished meanwhile is worth nothing.
        self.engine.base.check()?;
        if self.bundle.is_some() {
            draft.append(&self.out)?;
        } else {
            draft.create(&self.out)?;
        }
        self.bundle = Some(Bundle::open(&self.out)?);
        self.forget_checkpoints();
        Ok(())
    }

    fn score(&self, evaluator: &mut Evaluator, bundle: Bundle, seen: usize, kept: &Path) -> Result<StageScores> {
        self.tell(Event::Begin("scoring test rows"));
        let skills = Skills::new(bundle, &self.engine.base)?;
        let s = evaluator.score(self.engine, &skills, &self.tasks, seen)?;
        let json = serde_json::to_vec(&s).map_err(|e| Error::new(Code::Value, e.to_string()))?;
        conpet_formats::fs::write_atomic(kept, |w| w.write_all(&json).map_err(|e| Error::io("write", e)))?;
        Ok(s)
    }

    fn plan(&self, task: usize, keep: QuantType) -> Plan<'_> {
        let reads = self.config.method == "dynamic"
            && selectors::by_name(&self.config.selector).is_ok_and(|s| s.kind.scores_classes());
        Plan {
            trunk: self.decoder.first,
            selector: reads.then_some(&self.selector_feature),
            head: (self.tasks[task].kind == TaskKind::Classification).then_some(&self.head_feature),
            max_len: self.config.max_len,
            says_labels: false,
            keep,
        }
    }

    /// Of rows to train on.
    fn training_plan(&self, task: usize) -> Plan<'_> {
        Plan { says_labels: !self.linear_head(), ..self.plan(task, QuantType::F16) }
    }

    fn prepared(&self, task: &Task, rows: &[Row], plan: Plan<'_>, name: &str) -> Result<Prepared> {
        self.tell(Event::Begin(&format!("trunk pass over {name}")));
        let file = self.work.join(format!("{}.states", name.replace(['/', ' '], "-")));
        Prepared::new(self.engine, task, rows, plan, Some(&file), &mut |_| {})
    }

    /// A task's training rows with their trunk states.
    pub fn prepare_train(&self, t: usize) -> Result<Prepared> {
        let task = self.tasks[t].clone();
        self.prepared(&task, &task.train, self.training_plan(t), &format!("{} train", task.name))
    }

    /// Rows of an earlier task to train on again: those numbered, or all. Their trunk states are made
    /// once in a process.
    pub fn replay(&mut self, t: usize, rows: Option<&[usize]>) -> Result<Arc<Prepared>> {
        if let Some(known) = self.replayed.get(&t) {
            return Ok(known.clone());
        }
        let task = self.tasks[t].clone();
        let some: Option<Vec<Row>> = rows.map(|rows| rows.iter().map(|i| task.train[*i].clone()).collect());
        let rows = some.as_deref().unwrap_or(&task.train);
        let data = Arc::new(self.prepared(&task, rows, self.training_plan(t), &format!("{} replay", task.name))?);
        self.replayed.insert(t, data.clone());
        Ok(data)
    }

    /// A task's validation rows: as the head meets them, in the task's template, with the selector's
    /// features of the bare inputs; of a task answered by text those features alone count.
    pub fn prepare_valid(&self, t: usize) -> Result<Prepared> {
        if self.tasks[t].kind == TaskKind::Generation {
            return self.prepare_plain(t, "valid");
        }
        let task = self.tasks[t].clone();
        self.prepared(&task, &task.valid, self.plan(t, QuantType::F32), &format!("{} valid", task.name))
    }

    /// A task's rows as bare inputs: without template or answer, as the selector meets them.
    pub fn prepare_plain(&self, t: usize, split: &str) -> Result<Prepared> {
        let (task, rows) = bare(&self.tasks[t], split);
        let file = self.work.join(format!("{}-{split}-bare.states", task.name));
        let keep = if split == "train" { QuantType::F16 } else { QuantType::F32 };
        Prepared::new(self.engine, &task, &rows, self.plan(t, keep), Some(&file), &mut |_| {})
    }

    fn test_set(&self, t: usize) -> Result<TestSet> {
        let (task, rows) = bare(&self.tasks[t], "test");
        let data = self.prepared(&task, &rows, self.plan(t, QuantType::F32), &format!("{} test", task.name))?;
        Ok(TestSet { task: t, rows: self.tasks[t].test.clone(), data })
    }

    /// A task's test rows as the head meets them, in the task's template.
    pub fn prepare_test(&self, t: usize) -> Result<Prepared> {
        let task = self.tasks[t].clone();
        self.prepared(&task, &task.test, self.plan(t, QuantType::F32), &format!("{} test", task.name))
    }

    /// Adds what training cost to the run's account.
    pub fn account(&mut self, t: &Trained) {
        self.usage.trained_tokens += t.tokens;
        self.usage.stages.push(StageCost { steps: t.steps, rows: t.rows, tokens: t.tokens });
        self.usage.training_seconds += t.seconds;
        self.usage.trainable = self.usage.trainable.max(t.trainable as u64);
    }

    fn report(&mut self, scores: &[StageScores]) -> MethodReport {
        self.usage.base_parameters = self.engine.base.spec.parameters() as u64;
        self.usage.peak_rss = self.usage.peak_rss.max(Memory::now().peak);
        self.usage.bundle_bytes = std::fs::metadata(&self.out).map_or(0, |m| m.len());
        MethodReport::new(&self.config, &self.tasks, scores, self.usage.clone())
    }
}

/// Scores kept by an earlier process, of the first `seen` tasks: another release scored what was
/// learned at once on all tasks together.
fn kept_scores(file: &Path, seen: usize) -> Option<StageScores> {
    let scores: StageScores = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    scores.rows.iter().skip(seen).all(|n| *n == 0).then_some(scores)
}

/// One shared module is asked without knowing the task, so no task's own words can be around the
/// input: labels are learned from bare inputs, and texts need one template for all.
fn one_template(tasks: &mut [Task]) -> Result<()> {
    if let Some(t) = tasks.iter().find(|t| t.kind == TaskKind::Generation && t.template != tasks[0].template) {
        return Err(Error::new(Code::Unsupported, format!("task {} has another template than the first", t.name))
            .hint("one shared module is asked without knowing the task: give all tasks one template, or use --method dynamic"));
    }
    tasks.iter_mut().filter(|t| t.kind == TaskKind::Classification).for_each(|t| t.template = "{input}".into());
    Ok(())
}

/// A task and a split of it as bare inputs.
pub(crate) fn bare(task: &Task, split: &str) -> (Task, Vec<Row>) {
    let rows = match split {
        "train" => &task.train,
        "valid" => &task.valid,
        _ => &task.test,
    };
    let strip = |r: &Row| match &r.goal {
        Goal::Label(_) => r.clone(),
        Goal::Completion(_) => Row { text: r.text.clone(), goal: Goal::Label(String::new()), chat: Vec::new() },
    };
    let rows = rows.iter().map(strip).collect();
    (Task { template: "{input}".into(), ..task.clone() }, rows)
}
