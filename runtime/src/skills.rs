//! A bundle at work: modules and heads by task, loaded on first use, and the selector.

use crate::base::Base;
use crate::error::{Code, Error, Result};
use crate::head::Head;
use crate::module::Module;
use crate::select::Selector;
use conpet_formats::bundle::Bundle;
use conpet_formats::bundle::manifest::{Manifest, TaskEntry, TaskKind};
use conpet_formats::fingerprint::{self, CheckDepth};
use conpet_formats::mmap::Mapped;
use conpet_formats::template;
use std::ops::Range;
use std::path::Path;
use std::sync::OnceLock;

/// The skills of one stage of a bundle, on the base they were trained on.
#[derive(Debug)]
pub struct Skills {
    bundle: Bundle,
    modules: Vec<OnceLock<Module>>,
    heads: Vec<OnceLock<Head>>,
    selector: Selector,
    /// First selector class of each task, if the selector scores classes.
    class_start: Vec<Option<usize>>,
}

impl Skills {
    /// Opens the newest stage of a bundle.
    ///
    /// # Errors
    /// If the bundle is damaged, or was trained on another base.
    pub fn open(path: &Path, base: &Base) -> Result<Self> {
        Self::new(Bundle::open(path)?, base).map_err(|e| e.in_file(path))
    }

    /// Takes an opened bundle; refuses a base with another fingerprint.
    pub fn new(bundle: Bundle, base: &Base) -> Result<Self> {
        let m = bundle.manifest();
        fingerprint::check_base(&m.base, &base.gguf()?, base.map(), CheckDepth::Quick)
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
        Ok(Self {
            modules: m.modules.iter().map(|_| OnceLock::new()).collect(),
            heads: m.heads.iter().map(|_| OnceLock::new()).collect(),
            selector,
            class_start,
            bundle,
        })
    }

    /// The bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// What the stage says about itself.
    pub fn manifest(&self) -> &Manifest {
        self.bundle.manifest()
    }

    /// The selector.
    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// Layers that every module shares.
    pub fn trunk(&self) -> usize {
        self.manifest().trunk as usize
    }

    /// The task with this name.
    ///
    /// # Errors
    /// If there is none; the message lists those there are.
    pub fn task(&self, name: &str) -> Result<usize> {
        let tasks = &self.manifest().tasks;
        tasks.iter().position(|t| t.name == name).ok_or_else(|| {
            let known: Vec<_> = tasks.iter().map(|t| t.name.as_str()).collect();
            Error::new(Code::Missing, format!("the bundle has no task {name:?}"))
                .in_file(self.bundle.path())
                .hint(format!("it knows: {}", known.join(", ")))
        })
    }

    /// A module, verified and hooked at first use.
    pub fn module(&self, index: usize, base: &Base) -> Result<&Module> {
        if let Some(m) = self.modules[index].get() {
            return Ok(m);
        }
        let manifest = self.manifest();
        let entry = &manifest.modules[index];
        let place = || format!("module {}", entry.id);
        let sites = manifest.target_sets.get(&entry.targets).ok_or_else(|| {
            Error::new(Code::Missing, format!("no target set {:?}", entry.targets)).in_section(place())
        })?;
        let (map, range) = self.bundle.section_map(entry.section)?;
        let pet = entry.pet().map_err(|e| e.in_section(place()).in_file(self.bundle.path()))?;
        let module = Module::load(map, range, sites, &pet, &base.spec)
            .map_err(|e| e.in_section(place()).in_file(self.bundle.path()))?;
        if module.first_layer() < self.trunk() {
            return Err(Error::new(
                Code::Value,
                format!("acts on layer {}, below the bundle's trunk of {}", module.first_layer(), manifest.trunk),
            )
            .in_section(place())
            .in_file(self.bundle.path()));
        }
        Ok(self.modules[index].get_or_init(|| module))
    }

    /// The modules that are run for a task with labels: its own (`None` is the bare base), and those of
    /// its ensemble.
    pub fn experts(&self, task: &TaskEntry, base: &Base) -> Result<Vec<Option<&Module>>> {
        let own = task.module.map(|m| self.module(m as usize, base)).transpose()?;
        let others = task.ensemble.iter().map(|m| self.module(*m as usize, base).map(Some));
        std::iter::once(Ok(own)).chain(others).collect()
    }

    /// A head, verified at first use.
    pub fn head(&self, index: usize, base: &Base) -> Result<&Head> {
        if let Some(h) = self.heads[index].get() {
            return Ok(h);
        }
        let entry = &self.manifest().heads[index];
        let payload: (Mapped, Range<usize>) = self.bundle.section_map(entry.section)?;
        let head = Head::load(entry, self.manifest(), payload, &base.spec)
            .map_err(|e| e.in_section(format!("head {}", entry.id)).in_file(self.bundle.path()))?;
        Ok(self.heads[index].get_or_init(|| head))
    }

    /// For each row of a head, the selector's class that is the same label, where it has one.
    pub fn selector_classes(&self, head: &Head) -> Vec<Option<usize>> {
        head.classes.iter().map(|(task, label)| self.class_start[*task].map(|s| s + label)).collect()
    }

    /// The user's text inside the task's template.
    pub fn render(&self, task: &TaskEntry, text: &str) -> Result<String> {
        template::render(&task.template, text).map_err(|e| e.in_section(format!("task {}", task.name)))
    }

    /// True if any task is answered by text.
    pub fn generates(&self) -> bool {
        self.manifest().tasks.iter().any(|t| t.kind == TaskKind::Generation)
    }
}
