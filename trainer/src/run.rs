//! A run over a stream: each task is learned, its stage is written to the bundle and scored, and a report is
//! made at the end.
//!
//! This is the loop above the methods. A run that was stopped continues from the last stage (`run/resume.rs`) and,
//! within a task, from the last checkpoint; [`add`] learns one more task onto a bundle.

pub mod add;
mod resume;

use crate::config::{Config, Score};
use crate::evaluate::{Evaluator, TestSet};
use crate::method::Method;
use crate::metrics::StageScores;
use crate::report::MethodReport;
use crate::selectors;
use crate::services::module::Modules;
use crate::services::prepare::Split;
use crate::services::usage::Usage;
use crate::services::{Event, Materials, Services, Stage};
use crate::stream::{self, Row, Task};
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::bundle::{Bundle, Draft};
use conpet_formats::feature::FeatureSpec;
use conpet_formats::head::HeadKind;
use conpet_formats::{Code, Error, Result, fs};
use conpet_runtime::engine::Engine;
use conpet_runtime::memory::Memory;
use conpet_runtime::skills::Skills;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// A run over a stream of tasks.
pub struct Run<'a> {
    config: Config,
    method: Method,
    services: Services<'a>,
    strangers: Vec<Row>,
    /// Path of the bundle.
    out: PathBuf,
    /// The work folder beside the bundle, with what a resumed run needs.
    work: PathBuf,
}

impl<'a> Run<'a> {
    /// Prepares a run that writes to `out`, with its checkpoints in `<out>.work`.
    ///
    /// # Errors
    /// If a setting is out of range, the method cannot learn the tasks, or the work folder cannot be made.
    pub fn new(
        config: Config,
        engine: &'a Engine,
        tasks: Vec<Task>,
        out: &Path,
        stop: &'a AtomicBool,
        on_event: impl FnMut(Event<'_>) + 'a,
    ) -> Result<Self> {
        let resolved = config.check(&engine.base.spec)?;
        let selector_feature = config.selector_feature(&engine.base.spec, resolved.trunk)?;
        Self::with(config, engine, tasks, (out, None), selector_feature, stop, on_event)
    }

    fn with(
        config: Config,
        engine: &'a Engine,
        mut tasks: Vec<Task>,
        (out, bundle): (&Path, Option<Bundle>),
        selector_feature: Option<FeatureSpec>,
        stop: &'a AtomicBool,
        on_event: impl FnMut(Event<'_>) + 'a,
    ) -> Result<Self> {
        let method = config.method()?;
        let rows = &config.services.rows;
        tasks.iter_mut().for_each(|t| t.subset(rows.subset, rows.test_subset));
        let tasks = method.tasks(tasks)?;
        let writes = tasks.iter().find(|t| t.kind == TaskKind::Generation);
        if let Some(t) = writes.filter(|_| !engine.base.spec.causal) {
            engine.check_predicts(&format!("task {:?} is answered by text, which", t.name))?;
        }
        let selector = &config.methods.dynamic.common.selector;
        if method.traits.selects && selectors::by_name(selector)?.asks_for_valid() {
            stream::need_valid(&tasks, &format!("--selector {selector}"))?;
        }
        let wordy = tasks.iter().find(|t| t.kind == TaskKind::Generation && !t.train.is_empty());
        if let Some(t) = wordy.filter(|_| config.services.module.modules == Modules::None) {
            return Err(Error::new(
                Code::Unsupported,
                format!("task {:?} is answered by text, which takes a module", t.name),
            )
            .hint("leave out --quick and --modules none"));
        }
        if config.services.head.kind()? != HeadKind::Linear {
            engine.check_predicts("a choice head")?;
        }
        let work = out.with_extension("work");
        let materials = Materials { engine, tasks, selector_feature, bundle, work: work.clone(), stop };
        let services = Services::new(&config.services, materials, on_event)?;
        Ok(Self { config, method, services, strangers: Vec::new(), out: out.to_owned(), work })
    }

    /// Adds inputs of no task, to measure at each stage whether the selector refuses them.
    #[must_use]
    pub fn with_strangers(self, strangers: Vec<Row>) -> Self {
        Self { strangers, ..self }
    }

    /// Learns the whole stream; with `resume`, continues from the bundle and its work folder. `None` if it was
    /// stopped.
    ///
    /// # Errors
    /// If the bundle exists and `resume` is false, or it was begun with other settings, tasks or rows.
    pub fn stream(&mut self, resume: bool) -> Result<Option<MethodReport>> {
        let begin = Instant::now();
        let stages = self.services.tasks().len();
        let at_once = self.method.traits.at_once;
        let done = self.resume_point(resume)?;
        let before = self.services.usage().seconds;
        let mut evaluator = Evaluator::default();
        if !self.strangers.is_empty() {
            evaluator.set_strangers(self.services.prepare_strangers(&self.strangers)?);
        }
        let mut scores: Vec<StageScores> = Vec::new();
        for t in 0..stages {
            let learned = t < done || at_once && t > 0;
            evaluator.add(self.test_set(t)?);
            if !learned {
                let draft = self.learn(t)?;
                self.count_seconds(before + begin.elapsed().as_secs_f64());
                let written = draft.map(|d| self.write(d)).transpose()?;
                self.keep_usage()?;
                if written.is_none() {
                    return Ok(None);
                }
            }
            if self.config.run.score == Score::Last && t + 1 < stages {
                continue;
            }
            let kept = self.scores_file(t + 1);
            if let Some(s) = resume::kept_scores(&kept, t + 1).filter(|_| learned) {
                scores.push(s);
                continue;
            }
            // The bundle's stage to score. A method that learns all tasks at once has only one stage, which is
            // scored as if only the tasks so far existed: what it loses from step to step is due to the choice
            // among more classes, not to learning.
            let stage = if at_once { 1 } else { t + 1 };
            let bundle = Bundle::open_stage(&self.out, stage as u64)?;
            let s = self.score(&mut evaluator, bundle, t + 1, &kept)?;
            self.services.tell(Event::Stage(t + 1, &s));
            scores.push(s);
        }
        self.count_seconds(before + begin.elapsed().as_secs_f64());
        Ok(Some(self.report(&scores)))
    }

    /// Learns a task's stage; `None` if it was stopped. Its checkpoints then hold what was finished, and its
    /// cost is counted when it is done.
    fn learn(&mut self, t: usize) -> Result<Option<Draft>> {
        let account = self.services.usage().clone();
        let draft = self.services.draft(self.method.name)?;
        let stage = Stage { task: t, draft, fixed: self.method.traits.fixed };
        let draft = (self.method.learn)(&mut self.services, &self.config.methods, stage)?;
        if draft.is_none() {
            self.services.count_from(account);
        }
        Ok(draft)
    }

    /// Creates the bundle or appends the stage, then deletes what only this stage needed.
    fn write(&mut self, draft: Draft) -> Result<()> {
        // What was learned is worthless if the base's file was changed meanwhile.
        self.services.engine().base.check()?;
        if self.services.bundle().is_some() {
            draft.append(&self.out)?;
        } else {
            draft.create(&self.out)?;
        }
        self.services.go_on_from(Bundle::open(&self.out)?);
        self.services.forget_checkpoints();
        Ok(())
    }

    fn test_set(&self, t: usize) -> Result<TestSet> {
        let data = self.services.prepare_bare(t, Split::Test)?;
        Ok(TestSet { task: t, rows: self.services.tasks()[t].test.clone(), data })
    }

    fn score(&self, evaluator: &mut Evaluator, bundle: Bundle, seen: usize, kept: &Path) -> Result<StageScores> {
        self.services.tell(Event::Begin("scoring test rows"));
        let engine = self.services.engine();
        let skills = Skills::new(bundle, &engine.base)?;
        let s = evaluator.score(engine, &skills, self.services.tasks(), seen)?;
        let json = serde_json::to_vec(&s).map_err(|e| Error::new(Code::Value, e.to_string()))?;
        fs::write_atomic(kept, |w| w.write_all(&json).map_err(|e| Error::io("write", e)))?;
        Ok(s)
    }

    fn scores_file(&self, seen: usize) -> PathBuf {
        self.work.join(format!("scores-{seen}.json"))
    }

    fn count_seconds(&mut self, seconds: f64) {
        let usage = self.services.usage().clone();
        self.services.count_from(Usage { seconds, ..usage });
    }

    fn report(&self, scores: &[StageScores]) -> MethodReport {
        let mut usage = self.services.usage().clone();
        usage.base_parameters = self.services.spec().parameters() as u64;
        usage.peak_rss = usage.peak_rss.max(Memory::now().peak);
        usage.bundle_bytes = std::fs::metadata(&self.out).map_or(0, |m| m.len());
        MethodReport::new(&self.config, self.services.tasks(), scores, usage)
    }
}
