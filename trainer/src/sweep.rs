//! One task (or a few) trained with several PET kinds at several sizes: whether structure matters, and how
//! many trained numbers are enough (APET, Su et al. 2023, arXiv 2306.02320).
//!
//! Every point is trained alone from the same start on the same cached trunk states, its learning rate
//! chosen on the validation rows, and scored on the test rows by the runtime with the numbers as
//! a bundle stores them. Each task has a head of its own and is known when it is asked: nothing is
//! routed here.

use crate::config::Config;
use crate::data::Prepared;
use crate::fit::{Examples, HEAD_BIAS, HEAD_WEIGHT, Outcome, Trained};
use crate::report::sweep::{Point, Sweep};
use crate::run::{Event, Lesson, Run};
use crate::stream::Task;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::PetSpec;
use conpet_formats::{Code, Error, Result};
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::module::Module;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::Arc;
use std::time::Instant;

/// What is swept where nothing is named.
pub const DEFAULT_KINDS: [&str; 8] =
    ["lora", "adapter", "prefix", "bias", "ia3", "sparse:rule=random", "sparse:rule=magnitude", "sparse:rule=fisher"];

/// What to sweep over.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Specs, as `--pet` takes them.
    pub kinds: Vec<String>,
    /// Budgets, as `--params` takes them.
    pub sizes: Vec<String>,
    /// Learning rates to choose from.
    pub rates: Vec<f64>,
    /// Seeds to average over.
    pub seeds: u64,
}

/// A task's rows, ready.
struct Rows {
    train: Prepared,
    valid: Prepared,
    test: Prepared,
    classes: usize,
    name: String,
}

/// Rows right and rows asked.
type Score = (usize, usize);

/// Runs the sweep, writing `head` with its points to `out` after each. `None` if it was stopped.
///
/// # Errors
/// If a task is not answered by labels, a kind or size is malformed, or `out` holds a sweep and `resume`
/// is false, or one of other settings.
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
    if let Some(t) = tasks.iter().find(|t| t.kind != TaskKind::Classification) {
        return Err(Error::new(Code::Unsupported, format!("task {} is answered by text", t.name))
            .hint("sweep scores labels; name classification tasks with --task"));
    }
    if !config.head_kind()?.is_linear() {
        return Err(Error::new(Code::Unsupported, format!("sweep trains linear heads, and --head is {}", config.head))
            .hint("leave --head out"));
    }
    if let Some(bad) = wanted.rates.iter().find(|r| !(**r > 0.0 && **r < 1e6)) {
        return Err(Error::new(Code::Value, format!("--rates {bad} is not a positive number")));
    }
    // Every kind and size is read before anything is trained.
    let spec = &engine.base.spec;
    let mut plans: Vec<(usize, String, PetSpec)> = Vec::new();
    let mut skipped = Vec::new();
    for kind in &wanted.kinds {
        for size in &wanted.sizes {
            let mut c = Config { pet: kind.clone(), params: String::new(), ..config.clone() };
            let plain = c.pet(spec)?;
            if plain.acts_on_input() {
                c.trunk = 0;
            }
            size.parse::<conpet_formats::pet::Budget>().map_err(|e| e.in_section("--sizes"))?;
            c.params = size.clone();
            let trunk = c.trunk(spec);
            match c.pet(spec).and_then(|p| p.sites(spec, trunk).map(|_| p)) {
                // Kinds without a dial have a largest size: once is enough.
                Ok(p) if !plans.iter().any(|(_, k, q)| k == kind && *q == p) => plans.push((trunk, kind.clone(), p)),
                Ok(_) => skipped.push(format!("{kind} at {size}: no larger than the size before")),
                Err(e) => skipped.push(format!("{kind} at {size}: {}", e.message())),
            }
        }
    }
    plans.sort_by_key(|(trunk, _, _)| *trunk);
    std::fs::create_dir_all(out).map_err(|e| Error::io("create", e).in_file(out))?;
    let settings = toml::to_string(config).map_err(|e| Error::new(Code::Value, e.to_string()))?;
    let mut result = Sweep {
        settings: format!("{settings}rates = {:?}\nseeds = {}\n", wanted.rates, wanted.seeds),
        base_parameters: spec.parameters(),
        tasks: tasks.iter().map(|t| t.name.clone()).collect(),
        classes: tasks.iter().map(|t| t.labels.len()).collect(),
        skipped,
        ..head
    };
    result.take_earlier(out, resume)?;
    let mut trunks: Vec<usize> = plans.iter().map(|p| p.0).collect();
    trunks.dedup();
    for trunk in trunks {
        let c = Config {
            trunk: trunk as i64,
            selector: "task".into(),
            method: "dynamic".into(),
            pet: "lora".into(),
            params: String::new(),
            ..config.clone()
        };
        let mut run = Run::new(c, engine, tasks.to_vec(), &out.join("sweep.cpb"), stop, &mut on_event)?;
        let rows = (0..tasks.len()).map(|t| prepare(&run, t)).collect::<Result<Vec<_>>>()?;
        result.rows = [|r: &Rows| r.train.len(), |r: &Rows| r.valid.len(), |r: &Rows| r.test.len()]
            .map(|n| rows.iter().map(n).sum());
        let alone = std::iter::once(("head alone".to_owned(), None));
        let modules = plans.iter().filter(|p| p.0 == trunk).map(|(_, kind, pet)| (kind.clone(), Some(pet)));
        for (kind, pet) in alone.chain(modules) {
            let text = pet.map_or_else(|| format!("trunk {trunk}"), ToString::to_string);
            if result.points.iter().any(|p| p.kind == kind && p.pet == text) {
                continue;
            }
            let Some(point) = point(&mut run, &rows, (kind, text, pet), wanted)? else { return Ok(None) };
            result.points.push(point);
            result.write(out)?;
        }
    }
    result.write(out)?;
    let _ = std::fs::remove_dir_all(out.join("sweep.work"));
    Ok(Some(result))
}

fn prepare(run: &Run<'_>, t: usize) -> Result<Rows> {
    let task = &run.tasks[t];
    Ok(Rows {
        train: run.prepare_train(t)?,
        valid: run.prepare_valid(t)?,
        test: run.prepare_test(t)?,
        classes: task.labels.len(),
        name: task.name.clone(),
    })
}

/// Trains a point at every rate and seed, and scores the best rate; `None` if stopped.
fn point(
    run: &mut Run<'_>,
    rows: &[Rows],
    (kind, text, pet): (String, String, Option<&PetSpec>),
    wanted: &Wanted,
) -> Result<Option<Point>> {
    let begin = Instant::now();
    let spec = &run.engine.base.spec;
    run.sites = match pet {
        Some(p) => p.sites(spec, run.config.trunk(spec))?,
        None => Vec::new(),
    };
    let numbers = pet.map_or(0, |p| p.parameters(spec, run.config.trunk(spec)));
    if let Some(p) = pet {
        run.pet = p.clone();
    }
    let first_seed = run.config.seed;
    let (mut best, mut tried): (Option<(f64, f64, Vec<f64>)>, Vec<(f64, f64)>) = (None, Vec::new());
    for rate in &wanted.rates {
        run.config.lr = *rate;
        let (mut valid, mut test) = (Vec::new(), Vec::new());
        for seed in first_seed..first_seed + wanted.seeds {
            run.config.seed = seed;
            let (mut on_valid, mut on_test) = ((0, 0), (0, 0));
            for r in rows {
                let name = format!("{} {text} lr {rate} seed {seed}", r.name).replace(['/', ':', '='], "-");
                let feature = run.head_feature.clone();
                let outcome = run.fit(&Lesson::new(&name, &r.train, Some((&feature, r.classes))))?;
                let Outcome::Done(trained) = outcome else { return Ok(None) };
                let _ = std::fs::remove_file(run.checkpoint(&name));
                let blend = Blend::from(pet.map(|p| hooked(run, p, &trained).map(Arc::new)).transpose()?);
                add(&mut on_valid, score(run, &r.valid, &blend, &trained));
                add(&mut on_test, score(run, &r.test, &blend, &trained));
            }
            valid.push(share(on_valid));
            test.push(share(on_test));
        }
        let v = mean(&valid);
        tried.push((*rate, v));
        // The first of equals: the lowest rate.
        if best.as_ref().is_none_or(|(b, _, _)| v > *b) {
            best = Some((v, *rate, test));
        }
    }
    run.config.seed = first_seed;
    let (valid, rate, test) = best.unwrap_or_default();
    run.tell(Event::Begin(&format!("{kind}: {numbers} numbers, {:.1} % of test rows", 100.0 * mean(&test))));
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

/// The module as a bundle would hold it.
fn hooked(run: &Run<'_>, pet: &PetSpec, trained: &Trained) -> Result<Module> {
    let (payload, _) = trained.payload()?;
    let range = 0..payload.len();
    Module::load(Mapped::from_vec(payload), range, &trained.held(&run.sites), pet, &run.engine.base.spec)
}

/// Rows that the runtime and the head answer right.
fn score(run: &Run<'_>, data: &Prepared, blend: &Blend, trained: &Trained) -> Score {
    let (engine, feature) = (run.engine, &run.head_feature);
    let (weight, bias) = (&trained.tensors[HEAD_WEIGHT].1, &trained.tensors[HEAD_BIAS].1);
    let dim = feature.dim(engine.base.spec.hidden);
    let mut right = 0;
    let all: Vec<usize> = (0..data.len()).collect();
    for rows in all.chunks(16) {
        let mut hidden = Vec::new();
        rows.iter().for_each(|i| data.states(*i, &mut hidden));
        let prompts = rows.iter().map(|i| (&*data.prompts[*i], blend));
        let f = engine.branch(run.config.trunk(&engine.base.spec), prompts, &mut hidden, feature);
        for (x, i) in f.chunks_exact(dim).zip(rows) {
            let scores = weight.chunks_exact(dim).zip(bias).map(|(w, b)| engine.cpu().kernels.dot_f32(w, x) + b);
            let best = scores.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |x| x.0);
            right += usize::from(best == data.classes[*i]);
        }
    }
    (right, data.len())
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
