//! A bundle ready to run: modules and heads by task, loaded on first use, and the selector.

use crate::base::Base;
use crate::blend::Blend;
use crate::error::{Code, Error, Result};
use crate::head::Head;
use crate::module::Module;
use crate::select::Selector;
use conpet_formats::bundle::Bundle;
use conpet_formats::bundle::manifest::{Manifest, TaskEntry, TaskKind};
use conpet_formats::fingerprint::{self, CheckDepth};
use conpet_formats::head::HeadKind;
use conpet_formats::mmap::Mapped;
use conpet_formats::selector::SelectorKind;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The skills of one stage of a bundle, on the base they were trained on. A handle: clones share what has been
/// loaded.
///
/// ```no_run
/// use conpet_runtime::engine::Engine;
/// use conpet_runtime::skills::Skills;
/// use std::path::Path;
///
/// let engine = Engine::open(Path::new("base.gguf"), 0)?;
/// let skills = Skills::open(Path::new("skills.cpb"), &engine.base)?;
/// let task = skills.task("home_assistant")?;
/// let answers = engine.classify(&skills, &["dim the lamp"], Some(task))?;
/// println!("{:?}", answers[0].label);
/// # Ok::<(), conpet_runtime::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Skills(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    base: Arc<Base>,
    bundle: Bundle,
    modules: Vec<OnceLock<Arc<Module>>>,
    heads: Vec<OnceLock<Arc<Head>>>,
    selector: Selector,
    /// First selector class of each task, if the selector scores classes.
    class_start: Vec<Option<usize>>,
}

impl Skills {
    /// Opens the newest stage of a bundle.
    ///
    /// # Errors
    /// If the bundle is damaged, or was trained on another base.
    pub fn open(path: &Path, base: &Arc<Base>) -> Result<Self> {
        Self::new(Bundle::open(path)?, base).map_err(|e| e.in_file(path))
    }

    /// Takes an opened bundle; refuses a base with another fingerprint.
    pub fn new(bundle: Bundle, base: &Arc<Base>) -> Result<Self> {
        let m = bundle.manifest();
        fingerprint::check_base(&m.base, &base.gguf()?, CheckDepth::Quick)
            .map_err(|e| e.in_file(base.path()).in_section(format!("bundle {}", bundle.path().display())))?;
        let payload = match m.selector.section {
            Some(s) => Some(bundle.section_map(s)?),
            None => None,
        };
        if let Some(f) = &m.selector.feature {
            f.check(base.spec.n_layer as u32)?;
        }
        if m.trunk as usize > base.spec.n_layer {
            return Err(Error::new(
                Code::Value,
                format!("the trunk is {} layers, but the base has {} layers", m.trunk, base.spec.n_layer),
            )
            .in_section("manifest"));
        }
        let writes = |t: &TaskEntry| t.kind == TaskKind::Generation;
        if !base.spec.causal && (m.tasks.iter().any(writes) || m.heads.iter().any(|h| h.kind != HeadKind::Linear)) {
            return Err(Error::new(
                Code::Unsupported,
                format!("a task answers by text, and a {} base predicts none", base.spec.arch),
            )
            .in_section("manifest"));
        }
        for h in &m.heads {
            h.feature.check(base.spec.n_layer as u32).map_err(|e| e.in_section(format!("head {}", h.id)))?;
        }
        let selector = Selector::load(&m.selector, payload, m.tasks.len(), base.spec.hidden)
            .map_err(|e| e.in_section("selector"))?;
        let scored = selector.class_task();
        let per_class = m.selector.kind.scores_classes();
        let class_start = (0..m.tasks.len())
            .map(|t| {
                let width = scored.iter().filter(|c| **c == t).count();
                (per_class && width == m.tasks[t].labels.len()).then(|| scored.iter().position(|c| *c == t)).flatten()
            })
            .collect();
        Ok(Self(Arc::new(Inner {
            base: base.clone(),
            modules: m.modules.iter().map(|_| OnceLock::new()).collect(),
            heads: m.heads.iter().map(|_| OnceLock::new()).collect(),
            selector,
            class_start,
            bundle,
        })))
    }

    /// The bundle's file.
    pub fn bundle(&self) -> &Bundle {
        &self.0.bundle
    }

    /// The stage's manifest.
    pub fn manifest(&self) -> &Manifest {
        self.0.bundle.manifest()
    }

    /// The selector.
    pub fn selector(&self) -> &Selector {
        &self.0.selector
    }

    /// Number of layers of the trunk, which all modules share.
    pub fn trunk(&self) -> usize {
        self.manifest().trunk as usize
    }

    /// Index of the task with this name.
    ///
    /// # Errors
    /// If there is none; the message lists those there are.
    pub fn task(&self, name: &str) -> Result<usize> {
        let tasks = &self.manifest().tasks;
        tasks.iter().position(|t| t.name == name).ok_or_else(|| {
            let known: Vec<_> = tasks.iter().map(|t| t.name.as_str()).collect();
            Error::new(Code::Missing, format!("the bundle has no task {name:?}"))
                .in_file(self.0.bundle.path())
                .hint(format!("it knows: {}", known.join(", ")))
        })
    }

    /// A module, verified and attached to the base on first use.
    ///
    /// # Errors
    /// If its payload is damaged, does not fit the base, or acts below the trunk.
    pub fn module(&self, index: usize) -> Result<Arc<Module>> {
        let slot = &self.0.modules[index];
        if let Some(m) = slot.get() {
            return Ok(m.clone());
        }
        let manifest = self.manifest();
        let entry = &manifest.modules[index];
        let placed = |e: Error| e.in_section(format!("module {}", entry.id)).in_file(self.0.bundle.path());
        let sites = manifest
            .target_sets
            .get(&entry.targets)
            .ok_or_else(|| placed(Error::new(Code::Missing, format!("no target set {:?}", entry.targets))))?;
        let (map, range) = self.0.bundle.section_map(entry.section)?;
        let pet = entry.pet().map_err(placed)?;
        let module = Module::load(map, range, sites, &pet, &self.0.base.spec).map_err(placed)?;
        if module.first_layer() < self.trunk() {
            let what =
                format!("acts on layer {}, below the bundle's trunk of {}", module.first_layer(), manifest.trunk);
            return Err(placed(Error::new(Code::Value, what)));
        }
        Ok(slot.get_or_init(|| Arc::new(module)).clone())
    }

    /// The blend for a task: its module alone, or the bare base if it has none.
    ///
    /// # Errors
    /// See [`Skills::module`].
    pub fn blend(&self, task: &TaskEntry) -> Result<Blend> {
        task.module.map(|m| self.module(m as usize)).transpose().map(Blend::from)
    }

    /// The blends that are run, one after another, for a task with labels: its own module, and each module of
    /// its ensemble.
    ///
    /// # Errors
    /// See [`Skills::module`].
    pub fn experts(&self, task: &TaskEntry) -> Result<Vec<Blend>> {
        let others = task.ensemble.iter().map(|m| self.module(*m as usize).map(Blend::from));
        std::iter::once(self.blend(task)).chain(others).collect()
    }

    /// A head, verified on first use.
    ///
    /// # Errors
    /// If its payload is damaged, or does not fit its labels or the base.
    pub fn head(&self, index: usize) -> Result<Arc<Head>> {
        let slot = &self.0.heads[index];
        if let Some(h) = slot.get() {
            return Ok(h.clone());
        }
        let entry = &self.manifest().heads[index];
        let payload: (Mapped, Range<usize>) = self.0.bundle.section_map(entry.section)?;
        let head = Head::load(entry, self.manifest(), payload, &self.0.base.spec)
            .map_err(|e| e.in_section(format!("head {}", entry.id)).in_file(self.0.bundle.path()))?;
        Ok(slot.get_or_init(|| Arc::new(head)).clone())
    }

    /// For each row of a head, the selector's class for the same label, if it has one.
    pub fn selector_classes(&self, head: &Head) -> Vec<Option<usize>> {
        head.classes.iter().map(|(task, label)| self.0.class_start[*task].map(|s| s + label)).collect()
    }

    /// True if a task's labels are chosen with the help of the selector's scores, or by them alone.
    ///
    /// # Errors
    /// See [`Skills::head`].
    pub fn reads_selector(&self, task: usize) -> Result<bool> {
        let entry = &self.manifest().tasks[task];
        Ok(self.0.class_start[task].is_some()
            && (entry.by_selector()
                || entry.head.map(|h| self.head(h as usize)).transpose()?.is_some_and(|h| h.joins())))
    }

    /// The task and the label of one of the selector's classes; `None` for a task that generates text.
    pub fn label_of(&self, class: usize) -> Option<(usize, usize)> {
        let task = *self.selector().class_task().get(class)?;
        self.0.class_start[task].map(|start| (task, class - start))
    }

    /// The selector's classes for a task's labels, if it scores them.
    pub fn own_classes(&self, task: usize) -> Option<Range<usize>> {
        self.0.class_start[task].map(|s| s..s + self.manifest().tasks[task].labels.len())
    }

    /// True if some answer continues the prompt token by token: a text, or the text of a label.
    pub fn continues(&self) -> bool {
        let m = self.manifest();
        m.tasks.iter().any(|t| t.kind == TaskKind::Generation) || m.heads.iter().any(|h| !h.kind.is_linear())
    }

    /// True if the task generates text.
    pub fn is_generation(&self, task: usize) -> bool {
        self.manifest().tasks[task].kind == TaskKind::Generation
    }

    /// The task to use if no task was named and the selector does not choose.
    ///
    /// # Errors
    /// If there are several that differ.
    pub(crate) fn only_task(&self) -> Result<usize> {
        let m = self.manifest();
        let shared = m.selector.kind == SelectorKind::Single || m.tasks.len() == 1;
        // One head over all tasks answers for each of them; any of its tasks leads to it.
        let labelled = m.tasks.iter().position(|t| t.kind == TaskKind::Classification);
        labelled.or(Some(0)).filter(|_| shared).ok_or_else(|| {
            let names: Vec<_> = m.tasks.iter().map(|t| t.name.as_str()).collect();
            Error::new(Code::Value, "this bundle has no selector that chooses from the input")
                .hint(format!("name the task with --task: {}", names.join(", ")))
        })
    }
}
