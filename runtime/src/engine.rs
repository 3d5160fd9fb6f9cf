//! The way of a prompt: tokens, trunk, selection, branch, answer.
//!
//! [`Engine`] leads it; the steps stand in [`crate::forward`] (layers), [`crate::features`]
//! (pooling), [`crate::select`] (which module), [`crate::head`] (labels), [`crate::generate`]
//! (text). The trainer uses the same steps for its features and its scores.

mod classify;

pub use classify::Ask;

use crate::base::Base;
use crate::error::{Code, Error, Result};
use crate::features::{Pooler, Prompt};
use crate::forward::{self, Row, Scratch};
use crate::kernels::Kernels;
use crate::kv::KvType;
use crate::module::Module;
use crate::skills::Skills;
use crate::threads::Threads;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::selector::{Decision, SelectorKind};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A base ready to run.
#[derive(Debug)]
pub struct Engine {
    /// The frozen model.
    pub base: Arc<Base>,
    /// Which instruction set computes.
    pub kernels: Kernels,
    /// Who computes.
    pub threads: Threads,
    /// What KV caches store.
    pub kv_type: KvType,
    /// Most tokens in one batch: bounds the work space.
    pub batch: usize,
    /// Most tokens of a prompt together with its answer.
    pub context: usize,
}

/// States after the trunk, for a batch of prompts.
#[derive(Debug, Clone)]
pub struct TrunkStates {
    /// `[tokens, hidden]`.
    pub hidden: Vec<f32>,
    /// The selector's features `[prompts, dim]`; empty if none were asked for.
    pub features: Vec<f32>,
}

/// What one input is answered with.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The best label, if the chosen task has labels.
    pub label: Option<String>,
    /// Its probability within the candidates that were run.
    pub probability: f32,
    /// The task it came from (an index into the manifest's tasks).
    pub task: usize,
    /// Every candidate that was run, best task first.
    pub candidates: Vec<Candidate>,
    /// What the selector said; `None` if the task was named or there is only one module.
    pub decision: Option<Decision>,
    /// The input looks like none of the tasks.
    pub abstain: bool,
}

/// One task that was run for an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Index into the manifest's tasks.
    pub task: usize,
    /// The selector's weight for it.
    pub weight: f32,
    /// Log score of each label of the module's head (see [`crate::head::Head::log_scores`]):
    /// (task, label index, score).
    pub labels: Vec<(usize, usize, f32)>,
}

impl Engine {
    /// Opens a base with the fastest kernels this processor has.
    pub fn open(base: &Path, threads: usize) -> Result<Self> {
        Ok(Self::new(Arc::new(Base::open(base)?), threads))
    }

    /// For a base already open.
    pub fn new(base: Arc<Base>, threads: usize) -> Self {
        let context = base.spec.context;
        Self {
            base,
            kernels: Kernels::detect(),
            threads: Threads::new(threads),
            kv_type: KvType::default(),
            batch: 256,
            context,
        }
    }

    /// Fails if the base or the bundle is no longer what the last passes read: its file was cut short,
    /// rewritten, or could not be read. Ask before an answer leaves; the commands and
    /// [`Engine::classify`], [`Engine::generate`] and [`Engine::decide`] do.
    ///
    /// # Errors
    /// `E_CHANGED`, or `E_DIGEST` for a bundle that was rewritten in place.
    pub fn check(&self, skills: Option<&Skills>) -> Result<()> {
        self.base.check()?;
        skills.map_or(Ok(()), |s| s.bundle().check())
    }

    pub(crate) fn device(&self) -> (Kernels, &Threads) {
        (self.kernels, &self.threads)
    }

    /// Tokenizes; with `words` the text came out of a chat template and may spell control tokens
    /// outside of these ranges, without them it may not.
    ///
    /// # Errors
    /// If the text has no tokens or more than the context.
    pub fn prompt(&self, text: &str, words: Option<&[Range<usize>]>) -> Result<Prompt> {
        let (mut tokens, mut offsets) = self.base.tokenizer.encode_with_offsets(text, words)?;
        if let Some(bos) = self.base.tokenizer.bos() {
            tokens.insert(0, bos);
            offsets.insert(0, 0..0);
        }
        if tokens.is_empty() {
            return Err(Error::new(Code::Value, "the input is empty").hint("give at least one character of text"));
        }
        if tokens.len() > self.context {
            return Err(Error::new(
                Code::Cap,
                format!("the input has {} tokens, the context {}", tokens.len(), self.context),
            )
            .hint("shorten the input or raise --ctx-size"));
        }
        Ok(Prompt { text: text.to_owned(), tokens, offsets })
    }

    /// Embeds tokens into `hidden [tokens, hidden]`.
    pub fn embed(&self, tokens: impl Iterator<Item = u32>, hidden: &mut Vec<f32>) {
        let (table, h) = (self.base.embedding(), self.base.spec.hidden);
        let scale = self.base.spec.embedding_scale;
        hidden.clear();
        for t in tokens {
            let at = hidden.len();
            hidden.resize(at + h, 0.0);
            self.kernels.dequantize_row(table, t as usize, &mut hidden[at..]);
            if scale != 1.0 {
                hidden[at..].iter_mut().for_each(|v| *v *= scale);
            }
        }
    }

    /// Next-token logits `[n, vocab]` of normed states `[n, hidden]`.
    pub(crate) fn output(&self, normed: &[f32], logits: &mut [f32], n: usize) {
        self.kernels.matmul(&self.threads, self.base.output(), normed, logits, n);
        self.base.used(self.base.spec.n_layer);
    }

    /// Runs prompts through the first `depth` layers of the bare base, and reads `feature`
    /// (going deeper on a copy if it asks for deeper layers).
    pub fn trunk(
        &self,
        prompts: &[&Prompt],
        depth: usize,
        feature: Option<&FeatureSpec>,
        s: &mut Scratch,
    ) -> TrunkStates {
        let mut hidden = Vec::new();
        self.embed(prompts.iter().flat_map(|p| p.tokens.iter().copied()), &mut hidden);
        let mut pooler = feature.map(|f| Pooler::new(f, &self.base, self.kernels, prompts.iter().copied()));
        let observe = &mut |layer: usize, hidden: &[f32]| {
            if let Some(p) = &mut pooler {
                p.observe(layer, hidden);
            }
        };
        observe(0, &hidden);
        let mut rows: Vec<Row<'_>> =
            prompts.iter().map(|p| Row { tokens: p.tokens.len(), kv: None, module: None }).collect();
        forward::layers(self.device(), &self.base, 0..depth, &mut rows, &mut hidden, s, observe);
        let deepest = feature.map_or(0, |f| f.max_layer() as usize);
        if deepest > depth {
            let mut deeper = hidden.clone();
            forward::layers(self.device(), &self.base, depth..deepest, &mut rows, &mut deeper, s, observe);
        }
        TrunkStates { hidden, features: pooler.map(Pooler::finish).unwrap_or_default() }
    }

    /// Continues prompts from trunk states with a module in force, to the last layer, and reads
    /// `feature` there: `[prompts, dim]`. `hidden` is consumed as work space.
    pub fn branch(
        &self,
        prompts: &[&Prompt],
        depth: usize,
        hidden: &mut [f32],
        module: Option<&Module>,
        feature: &FeatureSpec,
        s: &mut Scratch,
    ) -> Vec<f32> {
        let mut rows: Vec<Row<'_>> = prompts.iter().map(|p| Row { tokens: p.tokens.len(), kv: None, module }).collect();
        self.pooled(depth, &mut rows, prompts.iter().copied(), hidden, feature, s)
    }

    /// Decisions of the bundle's selector for prompts that have passed the trunk.
    ///
    /// Empty if the selector does not choose (`task`, `single`).
    pub fn decide(
        &self,
        skills: &Skills,
        prompts: &[&Prompt],
        t: &TrunkStates,
        s: &mut Scratch,
    ) -> Result<Vec<Decision>> {
        let selector = skills.selector();
        let tokens = prompts.iter().map(|p| p.tokens.as_slice());
        let decisions = match selector.module().zip(selector.feature()) {
            None => selector.decide(self.device(), &t.features, tokens),
            Some((m, feature)) => {
                let module = skills.module(m, &self.base)?;
                let mut hidden = t.hidden.clone();
                let features = self.branch(prompts, skills.trunk(), &mut hidden, Some(module), feature, s);
                selector.decide(self.device(), &features, tokens)
            }
        };
        self.check(Some(skills))?;
        Ok(decisions)
    }

    /// The trunk feature the selector wants to have read (none for `conpet`, which runs its own pass).
    pub fn trunk_feature(skills: &Skills) -> Option<&FeatureSpec> {
        skills.selector().feature().filter(|_| skills.selector().module().is_none())
    }
}

impl Answer {
    fn settle(&mut self, skills: &Skills) {
        self.candidates.sort_by(|a, b| b.weight.total_cmp(&a.weight));
        if let Some((probability, task, label)) = best_label(&self.candidates) {
            self.probability = probability;
            self.task = task;
            self.label = skills.manifest().tasks[task].labels.get(label).cloned();
        }
    }
}

/// The label with the highest `log weight(task) + log p(label | task)`: (probability among all
/// labels that were run, task, label).
///
/// `None` if the heaviest candidate (the first) is answered by text.
pub fn best_label(candidates: &[Candidate]) -> Option<(f32, usize, usize)> {
    if candidates.first()?.labels.is_empty() {
        return None;
    }
    let scored =
        || candidates.iter().flat_map(|c| c.labels.iter().map(|(t, l, p)| (c.weight.max(1e-30).ln() + p, *t, *l)));
    let best = scored().reduce(|a, b| if b.0 > a.0 { b } else { a })?;
    let total: f32 = scored().map(|(s, _, _)| (s - best.0).exp()).sum();
    Some((1.0 / total, best.1, best.2))
}

/// The task to use when nothing was selected and none was named.
pub(crate) fn only_module(skills: &Skills) -> Result<usize> {
    let m = skills.manifest();
    let shared = m.selector.kind == SelectorKind::Single || m.tasks.len() == 1;
    // One head over all tasks answers for each of them; any of its tasks leads to it.
    m.tasks.iter().position(|t| t.kind == TaskKind::Classification).or(Some(0)).filter(|_| shared).ok_or_else(|| {
        let names: Vec<_> = m.tasks.iter().map(|t| t.name.as_str()).collect();
        Error::new(Code::Value, "this bundle has no selector that chooses from the input")
            .hint(format!("name the task with --task: {}", names.join(", ")))
    })
}

/// Cuts prompts into runs of at most `tokens` tokens (a longer prompt stands alone).
pub fn batches(prompts: &[Prompt], tokens: usize) -> impl Iterator<Item = &[Prompt]> {
    let mut rest = prompts;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fit = rest
            .iter()
            .take_while(|p| {
                sum += p.tokens.len();
                sum <= tokens
            })
            .count();
        if rest.is_empty() {
            return None;
        }
        let (head, tail) = rest.split_at(fit.max(1));
        rest = tail;
        Some(head)
    })
}
