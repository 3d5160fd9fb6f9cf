//! Trains one task (or a few) with several PET kinds at several sizes, to see whether their structure matters
//! and how many trained parameters are enough (APET, Su et al. 2023, arXiv 2306.02320).
//!
//! Every point is trained separately from the same start on the same cached trunk states. Its learning rate is
//! chosen on the validation rows, and it is scored on the test rows by the runtime with the parameters as a
//! bundle stores them. Each task has a head of its own and is known when scored, so there is no selector.

use crate::config::Config;
use crate::data::Prepared;
use crate::fit::{Examples, Outcome, Trained};
use crate::report::sweep::{Point, Sweep};
use crate::services::{self, Event, Lesson, Materials, ModulePlan, Services, lesson, module, prepare};
use crate::settings::Group;
use crate::settings::automatic::Trunk;
use crate::stream::{self, Task};
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::pet::{Budget, PetKind, PetSpec};
use conpet_formats::{Code, Error, Result};
use conpet_runtime::engine::Engine;
use conpet_runtime::sampler::argmax;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

/// The kinds that are swept by default.
pub const DEFAULT_KINDS: [&str; 8] =
    ["lora", "adapter", "prefix", "bias", "ia3", "sparse:rule=random", "sparse:rule=magnitude", "sparse:rule=fisher"];

/// The settings that have an effect on a sweep: it chooses the module and the learning rate itself, and has no
/// method or selector.
pub fn settings_in_effect() -> Vec<&'static str> {
    let groups = [
        module::Settings::keys(),
        module::LoraSettings::keys(),
        module::HeadSettings::keys(),
        lesson::Settings::keys(),
        prepare::Settings::keys(),
        vec!["threads"],
    ];
    groups.concat().into_iter().filter(|k| !["pet", "params", "lr"].contains(k)).collect()
}

/// What to sweep over.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// PET kinds, as `--pet` takes them.
    pub kinds: Vec<String>,
    /// Numbers of parameters, as `--params` takes them.
    pub sizes: Vec<String>,
    /// Learning rates to choose from.
    pub rates: Vec<f64>,
    /// Seeds to average over.
    pub seeds: u64,
}

/// The prepared rows of a task.
struct Rows {
    /// Index of the task.
    task: usize,
    train: Prepared,
    valid: Prepared,
    test: Prepared,
    classes: usize,
    name: String,
}

/// Rows answered correctly, and all rows.
type Score = (usize, usize);

/// A module to be trained, with its trunk.
struct Plan {
    trunk: usize,
    /// The kind as it was given.
    kind: String,
    pet: PetSpec,
}

/// Runs the sweep, writing `head` with its points to `out` after each. `None` if it was stopped.
///
/// # Errors
/// If a task generates text, a kind or size is malformed, or `out` holds a sweep and `resume` is false or its
/// settings differ.
pub fn sweep<'a>(
    engine: &'a Engine,
    config: &Config,
    tasks: &[Task],
    wanted: &Wanted,
    head: Sweep,
    (out, resume): (&Path, bool),
    stop: &'a AtomicBool,
    mut on_event: impl FnMut(Event<'_>),
) -> Result<Option<Sweep>> {
    let (settings, spec) = (&config.services, &engine.base.spec);
    if let Some(t) = tasks.iter().find(|t| t.kind != TaskKind::Classification) {
        return Err(Error::new(Code::Unsupported, format!("task {} generates text", t.name))
            .hint("sweep scores labels; name classification tasks with --task"));
    }
    if !settings.head.kind()?.is_linear() {
        let what = format!("sweep trains linear heads, and --head is {}", settings.head.head);
        return Err(Error::new(Code::Unsupported, what).hint("leave --head out"));
    }
    if let Some(bad) = wanted.rates.iter().find(|r| !(**r > 0.0 && **r < 1e6)) {
        return Err(Error::new(Code::Value, format!("--rates {bad} is not a positive number")));
    }
    stream::need_valid(tasks, "the choice of a learning rate")?;
    // Check every kind and size before anything is trained.
    let (plans, skipped) = plans(settings, engine, wanted)?;
    std::fs::create_dir_all(out).map_err(|e| Error::io("create", e).in_file(out))?;
    let mut result = Sweep {
        settings: format!("{}\nrates = {:?}\nseeds = {}\n", config.toml()?, wanted.rates, wanted.seeds),
        base_parameters: spec.parameters(),
        tasks: tasks.iter().map(|t| t.name.clone()).collect(),
        classes: tasks.iter().map(|t| t.labels.len()).collect(),
        skipped,
        ..head
    };
    result.take_earlier(out, resume)?;
    let work = out.join("sweep.work");
    let mut tasks = tasks.to_vec();
    tasks.iter_mut().for_each(|t| t.subset(settings.rows.subset, settings.rows.test_subset));
    for plans in plans.chunk_by(|a, b| a.trunk == b.trunk) {
        let trunk = plans[0].trunk;
        let mut settings = settings.clone();
        settings.module = module::Settings { trunk: Trunk::Layers(trunk), ..module::Settings::default() };
        let (tasks, work) = (tasks.clone(), work.clone());
        let materials = Materials { engine, tasks, selector_feature: None, bundle: None, work, stop };
        let services = Services::new(&settings, materials, &mut on_event)?;
        let rows = (0..services.tasks().len()).map(|t| Rows::new(&services, t)).collect::<Result<Vec<_>>>()?;
        result.rows = [|r: &Rows| r.train.len(), |r: &Rows| r.valid.len(), |r: &Rows| r.test.len()]
            .map(|n| rows.iter().map(n).sum());
        for plan in std::iter::once(None).chain(plans.iter().map(Some)) {
            let (kind, text) = plan.map_or_else(
                || ("head alone".to_owned(), format!("trunk {trunk}")),
                |p| (p.kind.clone(), p.pet.to_string()),
            );
            if result.points.iter().any(|p| p.kind == kind && p.pet == text) {
                continue;
            }
            let Some(point) = point(&services, &rows, (kind, text, plan), wanted)? else { return Ok(None) };
            result.points.push(point);
            result.write(out)?;
        }
    }
    result.write(out)?;
    let _ = std::fs::remove_dir_all(&work);
    Ok(Some(result))
}

/// Every kind at every size, sorted by trunk; and those that were skipped, with the reason.
fn plans(settings: &services::Settings, engine: &Engine, wanted: &Wanted) -> Result<(Vec<Plan>, Vec<String>)> {
    let spec = &engine.base.spec;
    let (mut plans, mut skipped): (Vec<Plan>, Vec<String>) = (Vec::new(), Vec::new());
    for kind in &wanted.kinds {
        for size in &wanted.sizes {
            let mut own = settings.module.clone();
            (own.pet, own.params) = (kind.clone(), String::new().into());
            if own.pet(&settings.lora, spec)?.part(PetKind::Prompt).is_some() {
                own.trunk = Trunk::Layers(0);
            }
            size.parse::<Budget>().map_err(|e| e.in_section("--sizes"))?;
            own.params = size.clone().into();
            let trunk = own.trunk(spec)?;
            match own.pet(&settings.lora, spec).and_then(|p| p.sites(spec, trunk).map(|_| p)) {
                // Some kinds have a largest size, which is trained only once.
                Ok(p) if plans.iter().any(|q| q.kind == *kind && q.pet == p) => {
                    skipped.push(format!("{kind} at {size}: no larger than the size before"));
                }
                Ok(pet) => plans.push(Plan { trunk, kind: kind.clone(), pet }),
                Err(e) => skipped.push(format!("{kind} at {size}: {}", e.message())),
            }
        }
    }
    plans.sort_by_key(|p| p.trunk);
    Ok((plans, skipped))
}

impl Rows {
    fn new(services: &Services<'_>, task: usize) -> Result<Self> {
        let t = &services.tasks()[task];
        Ok(Self {
            task,
            train: services.prepare_train(task)?,
            valid: services.prepare_valid(task)?,
            test: services.prepare_test(task)?,
            classes: t.labels.len(),
            name: t.name.clone(),
        })
    }
}

/// Trains a point at every rate and seed, and scores the best rate; `None` if it was stopped.
fn point(
    services: &Services<'_>,
    rows: &[Rows],
    (kind, text, plan): (String, String, Option<&Plan>),
    wanted: &Wanted,
) -> Result<Option<Point>> {
    let (begin, spec, trunk) = (Instant::now(), services.spec(), services.trunk());
    let numbers = plan.map_or(0, |p| p.pet.parameters(spec, trunk));
    let module = match plan {
        Some(p) => ModulePlan::above(p.pet.clone(), spec, trunk)?,
        // The head alone is a module without sites.
        None => ModulePlan { sites: Vec::new(), ..services.module().clone() },
    };
    let first_seed = services.settings().training.seed;
    let (mut best, mut tried): (Option<(f64, f64, Vec<f64>)>, Vec<(f64, f64)>) = (None, Vec::new());
    for rate in &wanted.rates {
        let (mut valid, mut test) = (Vec::new(), Vec::new());
        for seed in first_seed..first_seed + wanted.seeds {
            let (mut on_valid, mut on_test) = ((0, 0), (0, 0));
            for r in rows {
                let name = format!("{} {text} lr {rate} seed {seed}", r.name).replace(['/', ':', '='], "-");
                let plain = Lesson::new(&name, &r.train, Some((services.head_feature(), r.classes)));
                let lesson = Lesson { module: Some(&module), lr: Some(*rate), seed: Some(seed), ..plain };
                let Outcome::Done(trained) = services.fit(&lesson)? else { return Ok(None) };
                let _ = std::fs::remove_file(services.checkpoint(&name));
                let [v, t] = scores(services, r, plan.map(|_| &module), &trained)?;
                add(&mut on_valid, v);
                add(&mut on_test, t);
            }
            valid.push(share(on_valid));
            test.push(share(on_test));
        }
        let v = mean(&valid);
        tried.push((*rate, v));
        // Of equal rates the first, which is the lowest.
        if best.as_ref().is_none_or(|(b, _, _)| v > *b) {
            best = Some((v, *rate, test));
        }
    }
    let (valid, rate, test) = best.unwrap_or_default();
    services.tell(Event::Begin(&format!("{kind}: {numbers} parameters, {:.1} % of test rows", 100.0 * mean(&test))));
    Ok(Some(Point {
        kind,
        pet: text,
        numbers,
        rate,
        valid,
        accuracy: mean(&test),
        by_seed: test,
        tried,
        seconds: begin.elapsed().as_secs_f64(),
    }))
}

/// Scores on validation and test rows, computed by the runtime from what a bundle would hold.
fn scores(services: &Services<'_>, r: &Rows, module: Option<&ModulePlan>, trained: &Trained) -> Result<[Score; 2]> {
    let mut draft = services.draft("per-task")?;
    (0..r.task).for_each(|before| services.add_task(&mut draft, before, None, None));
    let module = module.map(|m| services.add_module(&mut draft, trained, m, "")).transpose()?;
    let head = services.add_head(&mut draft, trained, vec![r.task as u32], None)?;
    services.add_task(&mut draft, r.task, module, Some(head));
    let score = |data: &Prepared| -> Result<Score> {
        let logits = services.newest_logits(&draft, data, &(0..data.len()).collect::<Vec<_>>())?;
        let right = logits.iter().zip(&data.classes).filter(|(l, class)| argmax(l) as usize == **class).count();
        Ok((right, data.len()))
    };
    Ok([score(&r.valid)?, score(&r.test)?])
}

fn add(sum: &mut Score, s: Score) {
    *sum = (sum.0 + s.0, sum.1 + s.1);
}

fn share((right, rows): Score) -> f64 {
    right as f64 / rows.max(1) as f64
}

fn mean(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len().max(1) as f64
}
