//! Leads a run: stream, features, fit, selector, bundle, evaluation, report.
//!
//! Methods are recipes over what [`Run`] offers. After each task a stage is appended to the
//! bundle and scored; a run that was stopped goes on from the last stage and, within a task, from
//! the last checkpoint.

use crate::config::Config;
use crate::data::{Plan, Prepared};
use crate::decoder::{Decoder, WeightMode};
use crate::evaluate::{Evaluator, TestSet};
use crate::fit::{Batches, Epochs, Examples, Hyper, Job, Outcome, Progress, Trained, fit};
use crate::method::{self, Method, dynamic::best_temperature};
use crate::metrics::StageScores;
use crate::optim::{AdamWConfig, Schedule};
use crate::report::{MethodReport, Usage};
use crate::stream::{Goal, Row, Task};
use conpet_formats::bundle::manifest::{HeadEntry, ModuleEntry, TaskEntry, TaskKind};
use conpet_formats::bundle::{Bundle, Draft, SectionKind};
use conpet_formats::decimal::Decimal;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::fingerprint;
use conpet_formats::head as head_format;
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::lora::Scaling;
use conpet_formats::pet::{Lora, PetKind};
use conpet_formats::quant::QuantType;
use conpet_formats::tensors::{Tensors, TensorsWriter};
use conpet_formats::{Code, Error, Result};
use conpet_runtime::engine::Engine;
use conpet_runtime::forward::Scratch;
use conpet_runtime::head::join;
use conpet_runtime::memory::Memory;
use conpet_runtime::module::Module;
use conpet_runtime::skills::Skills;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
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
    /// Sites of new modules.
    pub sites: Vec<String>,
    decoder: Decoder,
    out: PathBuf,
    work: PathBuf,
    stop: &'a AtomicBool,
    usage: Usage,
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
        if config.subset > 0 {
            tasks.iter_mut().for_each(|t| t.subset(config.subset));
        }
        if config.method != "dynamic" {
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
        Ok(Self {
            head_feature: config.head_feature(spec)?,
            selector_feature: config.selector_feature(spec)?,
            sites: config.sites(spec)?,
            bundle: None,
            decoder,
            out: out.to_owned(),
            work,
            stop,
            usage: Usage::default(),
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
        let stages = if method.at_once { 1 } else { self.tasks.len() };
        let done = self.resume_point(resume, method)?;
        let mut evaluator = Evaluator::default();
        let mut scores: Vec<StageScores> = Vec::new();
        for t in 0..stages {
            let tests: Vec<usize> = if method.at_once { (0..self.tasks.len()).collect() } else { vec![t] };
            for s in tests {
                let set = self.test_set(s)?;
                evaluator.add(set);
            }
            let kept = self.work.join(format!("scores-{}.json", t + 1));
            let wanted = self.config.score == "stages" || t + 1 == stages;
            if t < done && !wanted {
                continue;
            }
            if t < done {
                if let Ok(s) =
                    std::fs::read(&kept).map_err(|_| ()).and_then(|b| serde_json::from_slice(&b).map_err(|_| ()))
                {
                    scores.push(s);
                    continue;
                }
                // The stage was written but not scored: score it as it stands in the chain.
                let bundle = Bundle::open_generation(&self.out, (t + 1) as u64)?;
                scores.push(self.score(&mut evaluator, bundle, &kept)?);
                continue;
            }
            let Some(draft) = (method.learn)(self, Stage { task: t, draft: self.draft()? })? else { return Ok(None) };
            self.write(draft, t)?;
            if !wanted {
                continue;
            }
            let bundle = Bundle::open(&self.out)?;
            let s = self.score(&mut evaluator, bundle, &kept)?;
            self.tell(Event::Stage(t + 1, &s));
            scores.push(s);
        }
        self.usage.seconds = begin.elapsed().as_secs_f64();
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
        self.write(draft, t)?;
        let mut evaluator = Evaluator::default();
        evaluator.add(self.test_set(t)?);
        let kept = self.work.join("scores-add.json");
        let bundle = Bundle::open(&self.out)?;
        self.score(&mut evaluator, bundle, &kept).map(Some)
    }

    fn tell(&self, event: Event<'_>) {
        (self.on_event.borrow_mut())(event);
    }

    fn method(&self) -> Result<Method> {
        method::by_name(&self.config.method).ok_or_else(|| {
            Error::new(Code::Value, format!("no method {:?}", self.config.method)).hint(method::NAMES.join(", "))
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
    fn write(&mut self, draft: Draft, t: usize) -> Result<()> {
        if self.bundle.is_some() {
            draft.append(&self.out)?;
        } else {
            draft.create(&self.out)?;
        }
        self.bundle = Some(Bundle::open(&self.out)?);
        for name in [self.tasks[t].name.clone(), "joint".into(), format!("selector-{t}")] {
            let _ = std::fs::remove_file(self.checkpoint(&name));
        }
        Ok(())
    }

    fn score(&self, evaluator: &mut Evaluator, bundle: Bundle, kept: &Path) -> Result<StageScores> {
        self.tell(Event::Begin("scoring test rows"));
        let skills = Skills::new(bundle, &self.engine.base)?;
        let s = evaluator.score(self.engine, &skills, &self.tasks, self.tasks.len())?;
        let json = serde_json::to_vec(&s).map_err(|e| Error::new(Code::Value, e.to_string()))?;
        conpet_formats::fs::write_atomic(kept, |w| w.write_all(&json).map_err(|e| Error::io("write", e)))?;
        Ok(s)
    }

    fn plan(&self, task: usize, keep: QuantType) -> Plan<'_> {
        let reads = matches!(self.config.selector.as_str(), "lda" | "ridge") && self.config.method == "dynamic";
        Plan {
            trunk: self.decoder.first,
            selector: reads.then_some(&self.selector_feature),
            head: (self.tasks[task].kind == TaskKind::Classification).then_some(&self.head_feature),
            max_len: self.config.max_len,
            keep,
        }
    }

    fn prepared(&self, task: &Task, rows: &[Row], plan_of: usize, keep: QuantType, name: &str) -> Result<Prepared> {
        self.tell(Event::Begin(&format!("trunk pass over {name}")));
        let file = self.work.join(format!("{}.states", name.replace(['/', ' '], "-")));
        Prepared::new(self.engine, task, rows, self.plan(plan_of, keep), Some(&file), &mut |_| {})
    }

    /// A task's training rows with their trunk states.
    pub fn prepare_train(&self, t: usize) -> Result<Prepared> {
        let task = self.tasks[t].clone();
        self.prepared(&task, &task.train, t, QuantType::F16, &format!("{} train", task.name))
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
        let data = self.prepared(&task, &rows, t, QuantType::F32, &format!("{} test", task.name))?;
        Ok(TestSet { task: t, rows: self.tasks[t].test.clone(), data })
    }

    fn checkpoint(&self, name: &str) -> PathBuf {
        self.work.join(format!("{}.checkpoint", name.replace('/', "-")))
    }

    /// Trains factors (and a head) on some rows.
    pub fn fit(
        &self,
        name: &str,
        data: &dyn Examples,
        head: Option<(&FeatureSpec, usize)>,
        batches: Option<&dyn Batches>,
        start: Option<&Trained>,
    ) -> Result<Outcome> {
        let c = &self.config;
        let lens: Vec<usize> = (0..data.len()).map(|i| data.tokens(i)).collect();
        let epochs = Epochs::new(&lens, c.batch, c.epochs, c.seed, name);
        let hyper = Hyper {
            lr: c.lr as f32,
            head_lr: c.head_lr as f32,
            adamw: AdamWConfig { weight_decay: c.weight_decay as f32, ..AdamWConfig::default() },
            warmup: c.warmup as f32,
            schedule: if c.schedule == "constant" { Schedule::Constant } else { Schedule::Cosine },
            clip: c.clip as f32,
            dropout: c.dropout as f32,
            activation_bytes: c.activations << 20,
        };
        let job = Job {
            decoder: &self.decoder,
            examples: data,
            batches: batches.unwrap_or(&epochs),
            lora: self.lora(),
            sites: &self.sites,
            head,
            hyper: &hyper,
            seed: c.seed,
            name,
            start,
            checkpoint: Some((self.checkpoint(name), c.checkpoint_every)),
            stop: self.stop,
        };
        if self.stop.load(Ordering::Relaxed) {
            return Ok(Outcome::Stopped);
        }
        fit(&job, &mut |p| self.tell(Event::Step(name, p)))
    }

    fn lora(&self) -> Lora {
        Lora { rank: self.config.rank, alpha: self.config.alpha, scaling: Scaling::AlphaOverRank }
    }

    fn module_entry(
        &self,
        draft: &mut Draft,
        trained: &Trained,
        sites: &[String],
        data: &str,
        index: usize,
    ) -> Result<ModuleEntry> {
        let mut w = TensorsWriter::new();
        for (name, (shape, v)) in trained.tensors.iter().filter(|(n, _)| !n.starts_with("head.")) {
            w.add_f16(name, shape, v)?;
        }
        let section = draft.add_section(SectionKind::Module, w.finish()?);
        let targets = match draft.manifest.target_sets.iter().find(|(_, s)| *s == sites) {
            Some((k, _)) => k.clone(),
            None => {
                let key = format!("t{}", draft.manifest.target_sets.len());
                draft.manifest.target_sets.insert(key.clone(), sites.to_vec());
                key
            }
        };
        let lora = self.lora();
        let train = [
            ("data", data.to_owned()),
            ("epochs", self.config.epochs.to_string()),
            ("loss", format!("{:.4}", trained.loss)),
            ("seed", self.config.seed.to_string()),
            ("tokens", trained.tokens.to_string()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        Ok(ModuleEntry {
            alpha: Decimal::from_f64(lora.alpha),
            dtype: "F16".into(),
            id: format!("m{index:04}"),
            kind: PetKind::Lora,
            rank: lora.rank as u32,
            scale: Decimal::from_f64(lora.scale()),
            scaling: lora.scaling,
            section,
            site_count: sites.len() as u32,
            targets,
            train: train.map(|(k, v)| (k.to_owned(), v)).into(),
        })
    }

    /// Adds a module's payload and entry; returns its number.
    pub fn add_module(&self, draft: &mut Draft, trained: &Trained, sites: &[String], data: &str) -> Result<u32> {
        let index = draft.manifest.modules.len();
        let entry = self.module_entry(draft, trained, sites, data, index)?;
        draft.manifest.modules.push(entry);
        Ok(index as u32)
    }

    /// Gives an existing module a new payload; its old bytes stay in the file.
    pub fn replace_module(&self, draft: &mut Draft, index: u32, trained: &Trained, data: &str) -> Result<u32> {
        let entry = self.module_entry(draft, trained, &self.sites, data, index as usize)?;
        draft.manifest.modules[index as usize] = entry;
        Ok(index)
    }

    /// Adds (or with `replace`, renews) the head over the labels of `tasks`.
    pub fn add_head(&self, draft: &mut Draft, trained: &Trained, tasks: Vec<u32>, replace: Option<u32>) -> Result<u32> {
        let dim = self.head_feature.dim(self.engine.base.spec.hidden);
        let (weight, bias) = (&trained.tensors["head.weight"].1, &trained.tensors["head.bias"].1);
        let mut w = TensorsWriter::new();
        w.add_f32(head_format::WEIGHT, &[bias.len(), dim], weight)?;
        w.add_f32(head_format::BIAS, &[bias.len()], bias)?;
        let section = draft.add_section(SectionKind::Head, w.finish()?);
        let index = replace.unwrap_or(draft.manifest.heads.len() as u32);
        let entry = HeadEntry {
            blend: Decimal::from_f64(0.0),
            classes: bias.len() as u32,
            feature: self.head_feature.clone(),
            id: format!("h{index:04}"),
            section,
            tasks,
            temperature: Decimal::from_f64(1.0),
        };
        match replace {
            Some(i) => draft.manifest.heads[i as usize] = entry,
            None => draft.manifest.heads.push(entry),
        }
        Ok(index)
    }

    /// Enters a task of the stream into the manifest.
    pub fn add_task(&self, draft: &mut Draft, t: usize, module: Option<u32>, head: Option<u32>) {
        let task = &self.tasks[t];
        let stage = draft.generation();
        draft.manifest.tasks.push(TaskEntry {
            head,
            id: t as u32,
            kind: task.kind,
            labels: task.labels.clone(),
            max_answer: task.max_answer,
            module,
            name: task.name.clone(),
            stage,
            template: task.template.clone(),
        });
    }

    /// Fits the newest head's temperature, and how much of the selector's own class posterior to
    /// join in, on the task's validation rows. Written into the draft.
    ///
    /// # Errors
    /// If the draft's own payloads cannot be used.
    pub fn calibrate_head(&self, draft: &mut Draft, t: usize) -> Result<()> {
        // In the task's template, as the head meets them; the selector's features are of the bare input.
        let task = self.tasks[t].clone();
        let valid = self.prepared(&task, &task.valid, t, QuantType::F32, &format!("{} valid", task.name))?;
        // The stage as it will be, in a file of its own: calibration runs what will serve.
        let trial = self.work.join("calibrate.cpb");
        let _ = std::fs::remove_file(&trial);
        let copy = self.trial(draft)?;
        copy.create(&trial)?;
        let skills = Skills::new(Bundle::open(&trial)?, &self.engine.base)?;
        let entry = &skills.manifest().tasks[0];
        let head = skills.head(entry.head.unwrap_or(0) as usize, &self.engine.base)?;
        let module: Option<&Module> = entry.module.map(|m| skills.module(m as usize, &self.engine.base)).transpose()?;
        let mut s = Scratch::default();
        let mut logits = Vec::new();
        let device = (self.engine.kernels, &self.engine.threads);
        let all: Vec<usize> = (0..valid.len()).collect();
        for rows in all.chunks(16) {
            let mut hidden = Vec::new();
            rows.iter().for_each(|i| valid.states(*i, &mut hidden));
            let prompts: Vec<_> = rows.iter().map(|i| &valid.prompts[*i]).collect();
            let f = self.engine.branch(&prompts, self.decoder.first, &mut hidden, module, &head.feature, &mut s);
            logits.extend(head.logits(device, &f).chunks_exact(head.classes.len()).map(<[f32]>::to_vec));
        }
        let temperature = best_temperature(&logits, &valid.classes);
        let mut blend = 0.0;
        if let Some((selector, first)) = self.draft_selector(draft)? {
            let decisions = selector.decide(device, &valid.features);
            let known: Vec<Option<usize>> = (0..head.classes.len()).map(|c| Some(first + c)).collect();
            let cost = |b: f32| -> f64 {
                (0..valid.len())
                    .map(|i| {
                        -f64::from(join(&logits[i], temperature, b, Some(&decisions[i]), &known)[valid.classes[i]])
                    })
                    .sum()
            };
            let grid = [0.0f32, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0];
            blend = grid.into_iter().min_by(|a, b| cost(*a).total_cmp(&cost(*b))).unwrap_or(0.0);
        }
        let _ = std::fs::remove_file(&trial);
        if let Some(h) = draft.manifest.heads.last_mut() {
            h.temperature = Decimal::from_f64(f64::from(temperature));
            h.blend = Decimal::from_f64(f64::from(blend));
        }
        Ok(())
    }

    /// A bundle of the newest task alone.
    fn trial(&self, draft: &Draft) -> Result<Draft> {
        let m = &draft.manifest;
        let mut out = Draft::new(m.base.clone(), &m.method, m.trunk);
        let missing = || Error::new(Code::Missing, "the stage has no task to calibrate");
        let mut task = m.tasks.last().ok_or_else(missing)?.clone();
        let mut head = m.heads.last().ok_or_else(missing)?.clone();
        head.section =
            out.add_section(SectionKind::Head, draft.new_section(head.section).ok_or_else(missing)?.to_vec());
        (head.id, head.tasks) = ("h0000".into(), vec![0]);
        if let Some(i) = task.module {
            let mut module = m.modules[i as usize].clone();
            let bytes = draft.new_section(module.section).ok_or_else(missing)?.to_vec();
            module.section = out.add_section(SectionKind::Module, bytes);
            module.id = "m0000".into();
            out.manifest.target_sets.insert(module.targets.clone(), m.target_sets[&module.targets].clone());
            out.manifest.modules.push(module);
        }
        (task.id, task.stage, task.head) = (0, 1, Some(0));
        task.module = task.module.map(|_| 0);
        out.manifest.heads.push(head);
        out.manifest.tasks.push(task);
        Ok(out)
    }

    /// The draft's class-scoring selector and the first class of its newest task.
    fn draft_selector(&self, draft: &Draft) -> Result<Option<(conpet_runtime::select::Selector, usize)>> {
        let m = &draft.manifest;
        let Some(bytes) = m.selector.section.filter(|_| m.selector.stats.is_some()).and_then(|s| draft.new_section(s))
        else {
            return Ok(None);
        };
        let map = Mapped::from_vec(bytes.to_vec());
        let range = 0..map.len();
        let hidden = self.engine.base.spec.hidden;
        let selector = conpet_runtime::select::Selector::load(&m.selector, Some((map, range)), m.tasks.len(), hidden)?;
        let first = selector.class_task().iter().position(|t| *t + 1 == m.tasks.len()).unwrap_or(0);
        Ok(Some((selector, first)))
    }

    /// Adds what training cost to the run's account.
    pub fn account(&mut self, t: &Trained) {
        self.usage.trained_tokens += t.tokens;
        self.usage.training_seconds += t.seconds;
        self.usage.trainable = self.usage.trainable.max(t.trainable as u64);
    }

    /// A module of the bundle and the weight and bias beside it (a head or a selector), to go on
    /// training from: always as stored, so that a resumed run starts from the same numbers.
    pub fn stored(&self, module: u32, head: u32) -> Option<Trained> {
        let b = self.bundle.as_ref()?;
        let mut tensors = BTreeMap::new();
        for (section, prefix) in [(b.manifest().modules.get(module as usize)?.section, ""), (head, "head.")] {
            let t = Tensors::parse(b.section(section).ok()?).ok()?;
            for n in t.names() {
                let x = t.get(n)?;
                tensors.insert(format!("{prefix}{n}"), (x.shape.clone(), x.to_f32()));
            }
        }
        Some(Trained { tensors, ..Trained::default() })
    }

    fn report(&mut self, scores: &[StageScores]) -> MethodReport {
        self.usage.base_parameters = self.engine.base.spec.parameters() as u64;
        self.usage.peak_rss = Memory::now().peak;
        self.usage.bundle_bytes = std::fs::metadata(&self.out).map_or(0, |m| m.len());
        MethodReport::new(&self.config, &self.tasks, scores, self.usage.clone())
    }
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
