//! Learns one more task onto a bundle, with the settings that the bundle has.

use super::{Run, resume};
use crate::config::Config;
use crate::evaluate::Evaluator;
use crate::metrics::{Metric, StageScores};
use crate::services::Event;
use crate::settings::automatic::Trunk;
use crate::settings::range::flag;
use crate::stream::Task;
use crate::{method, selectors};
use conpet_formats::bundle::Bundle;
use conpet_formats::bundle::manifest::TaskEntry;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::{Code, Error, Result};
use conpet_runtime::engine::Engine;
use std::path::Path;
use std::sync::atomic::AtomicBool;

impl<'a> Run<'a> {
    /// Prepares a run that adds `task` to the bundle at `out`, with settings [as the bundle has
    /// them](inherited).
    ///
    /// # Errors
    /// If the bundle knows the task, cannot grow, or a setting is out of range.
    pub fn onto(
        config: Config,
        engine: &'a Engine,
        task: Task,
        out: &Path,
        stop: &'a AtomicBool,
        on_event: impl FnMut(Event<'_>) + 'a,
    ) -> Result<Self> {
        let bundle = Bundle::open(out)?;
        can_grow(&bundle, &task.name).map_err(|e| e.in_file(out))?;
        let spec = &engine.base.spec;
        let config = inherited(config, &bundle, spec)?;
        config.check(spec)?;
        let m = bundle.manifest();
        let feature = m.selector.feature.clone().filter(|_| m.selector.kind.scores_classes());
        let mut tasks = known(&bundle);
        tasks.push(task);
        Self::with(config, engine, tasks, (out, Some(bundle)), feature, stop, on_event)
    }

    /// Learns the last task only, onto the bundle. `None` if stopped.
    ///
    /// # Errors
    /// If a stopped run of the same task was begun with other rows.
    pub fn add(&mut self) -> Result<Option<StageScores>> {
        let t = self.services.tasks().len() - 1;
        let rows = self.work.join("rows-add.json");
        if !self.services.has_checkpoint() {
            // No checkpoint exists yet, so the rows may change.
            let _ = std::fs::remove_file(&rows);
        }
        resume::same_rows(&rows, &self.services.tasks()[t..])?;
        let Some(draft) = self.learn(t)? else { return Ok(None) };
        self.write(draft)?;
        let mut evaluator = Evaluator::default();
        evaluator.add(self.test_set(t)?);
        let bundle = Bundle::open(&self.out)?;
        self.score(&mut evaluator, bundle, t + 1, &self.work.join("scores-add.json")).map(Some)
    }
}

/// Checks that a task of this name can be learned without the rows of earlier tasks.
fn can_grow(bundle: &Bundle, name: &str) -> Result<()> {
    let m = bundle.manifest();
    if m.tasks.iter().any(|t| t.name == name) {
        return Err(Error::new(Code::Duplicate, format!("the bundle already knows a task {name:?}"))
            .hint("give the task's folder another name"));
    }
    let grows = method::by_name(&m.method).is_ok_and(|x| !x.traits.shared);
    let selector = selectors::by_name(m.selector.kind.name()).is_ok_and(|s| !s.needs_old_rows);
    if grows && selector {
        return Ok(());
    }
    Err(Error::new(Code::Unsupported, format!("a bundle learned by {} with a {} selector", m.method, m.selector.kind.name()))
        .hint("add has no rows of earlier tasks, so it works for --method per-task, and for dynamic with any --selector but conpet; run the stream again for others"))
}

/// The bundle's tasks, without rows.
fn known(bundle: &Bundle) -> Vec<Task> {
    let task = |t: &TaskEntry| Task {
        name: t.name.clone(),
        kind: t.kind,
        labels: t.labels.clone(),
        template: t.template.clone(),
        max_answer: t.max_answer,
        train: Vec::new(),
        valid: Vec::new(),
        test: Vec::new(),
        digest: String::new(),
        metric: Metric::default(),
    };
    bundle.manifest().tasks.iter().map(task).collect()
}

/// Settings in which those that all stages of a bundle share are taken from the bundle: the method, the trunk,
/// and what the selector reads and how it decides.
///
/// # Errors
/// If the bundle's selector cannot be read.
pub fn inherited(mut config: Config, bundle: &Bundle, spec: &ModelSpec) -> Result<Config> {
    let m = bundle.manifest();
    config.run.method = m.method.clone();
    config.services.module.trunk = Trunk::Layers(m.trunk as usize);
    let payload = m.selector.section.map(|s| bundle.section(s)).transpose()?;
    config.methods.dynamic = config
        .methods
        .dynamic
        .inherited(&m.selector, payload, spec.hidden)
        .map_err(|e| e.in_section("selector").in_file(bundle.path()))?;
    Ok(config)
}

/// Fails if a setting that was given by name differs from the bundle's.
///
/// # Errors
/// Names the setting, its value, and the bundle's.
pub fn refuse_conflicts(given: &[&str], config: &Config, bundle: &Bundle, spec: &ModelSpec) -> Result<()> {
    // Compare in the bundle's spelling, in which for example a trunk of "a third" is a number of layers.
    let mut asked = config.clone();
    asked.services.module.trunk = Trunk::Layers(config.services.module.trunk(spec)?);
    asked.methods.dynamic = config.methods.dynamic.canonical(spec, bundle.manifest().trunk as usize)?;
    let has = inherited(asked.clone(), bundle, spec)?;
    let Some(key) = given.iter().find(|k| asked.get(k) != has.get(k)) else { return Ok(()) };
    let [asked, has] = [config, &has].map(|c| c.get(key).unwrap_or_default());
    Err(Error::new(Code::Value, format!("{} {asked} is not what the bundle was learned with: {has}", flag(key)))
        .in_file(bundle.path())
        .hint(format!("leave {} out: all tasks of a bundle share it", flag(key))))
}
