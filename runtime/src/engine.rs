//! The way of a prompt: tokens, trunk, selection, branch, answer.
//!
//! [`Engine`] leads it; the steps stand in [`crate::forward`] (layers), [`crate::features`]
//! (pooling), [`crate::select`] (which module), [`crate::head`] (labels), [`crate::generate`]
//! (text). The trainer uses the same steps for its features and its scores.

use crate::base::Base;
use crate::error::{Code, Error, Result};
use crate::features::{Pooler, Prompt};
use crate::forward::{self, Row, Scratch};
use crate::head::Head;
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
        let scale = self.base.spec.variant.embedding_scale;
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
        let mut pooler = Pooler::new(feature, &self.base, self.kernels, prompts.iter().copied());
        pooler.observe(depth, hidden);
        let mut rows: Vec<Row<'_>> = prompts.iter().map(|p| Row { tokens: p.tokens.len(), kv: None, module }).collect();
        let end = (feature.max_layer() as usize).max(depth);
        forward::layers(self.device(), &self.base, depth..end, &mut rows, hidden, s, &mut |l, h| {
            pooler.observe(l, h);
        });
        pooler.finish()
    }

    /// A head's scores for prompts that have passed the trunk, with each module in force in turn: of each
    /// prompt `[modules, classes]`, as [`Head::log_scores`] takes them.
    pub fn expert_logits(
        &self,
        prompts: &[&Prompt],
        depth: usize,
        trunk: &[f32],
        modules: &[Option<&Module>],
        head: &Head,
        s: &mut Scratch,
    ) -> Vec<Vec<f32>> {
        let mut out = vec![Vec::new(); prompts.len()];
        for module in modules {
            let logits = head.scores(self, depth, prompts, &mut trunk.to_vec(), *module, s);
            out.iter_mut().zip(logits.chunks_exact(head.classes.len())).for_each(|(o, l)| o.extend_from_slice(l));
        }
        out
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
        match selector.module().zip(selector.feature()) {
            None => Ok(selector.decide(self.device(), &t.features, tokens)),
            Some((m, feature)) => {
                let module = skills.module(m, &self.base)?;
                let mut hidden = t.hidden.clone();
                let features = self.branch(prompts, skills.trunk(), &mut hidden, Some(module), feature, s);
                Ok(selector.decide(self.device(), &features, tokens))
            }
        }
    }

    /// The trunk feature the selector wants to have read (none for `conpet`, which runs its own pass).
    pub fn trunk_feature(skills: &Skills) -> Option<&FeatureSpec> {
        skills.selector().feature().filter(|_| skills.selector().module().is_none())
    }

    /// Answers a batch of texts with labels.
    ///
    /// `task` names the task for all of them; otherwise the selector chooses for each.
    ///
    /// # Errors
    /// If a text is empty or too long, a payload is damaged, or the selector needs a task name.
    pub fn classify(
        &self,
        skills: &Skills,
        texts: &[&str],
        task: Option<usize>,
        s: &mut Scratch,
    ) -> Result<Vec<Answer>> {
        let prompts = texts.iter().map(|t| self.prompt(t, None)).collect::<Result<Vec<_>>>()?;
        let mut answers = Vec::with_capacity(texts.len());
        for chunk in batches(&prompts, self.batch) {
            answers.extend(self.classify_batch(skills, chunk, task, s)?);
        }
        Ok(answers)
    }

    fn classify_batch(
        &self,
        skills: &Skills,
        prompts: &[Prompt],
        named: Option<usize>,
        s: &mut Scratch,
    ) -> Result<Vec<Answer>> {
        let all: Vec<&Prompt> = prompts.iter().collect();
        let feature = if named.is_none() { Self::trunk_feature(skills) } else { None };
        let trunk = self.trunk(&all, skills.trunk(), feature, s);
        let mut decisions = match named {
            Some(_) => Vec::new(),
            None => self.decide(skills, &all, &trunk, s)?,
        };
        let wanted: Vec<Vec<(usize, f32)>> = (0..prompts.len())
            .map(|i| match (named, decisions.get(i)) {
                (Some(t), _) => Ok(vec![(t, 1.0)]),
                (None, Some(d)) => {
                    Ok(skills.selector().candidates(d).iter().map(|t| (*t, d.task_weight[*t])).collect())
                }
                (None, None) => only_module(skills).map(|t| vec![(t, 1.0)]),
            })
            .collect::<Result<_>>()?;
        let mut answers: Vec<Answer> = (0..prompts.len())
            .map(|i| Answer {
                label: None,
                probability: 0.0,
                task: wanted[i][0].0,
                candidates: Vec::new(),
                abstain: decisions.get(i).is_some_and(|d| d.abstain),
                decision: None,
            })
            .collect();
        let starts: Vec<usize> = prompts
            .iter()
            .scan(0, |at, p| {
                let start = *at;
                *at += p.tokens.len();
                Some(start)
            })
            .collect();
        for task in 0..skills.manifest().tasks.len() {
            let mine: Vec<usize> = (0..prompts.len()).filter(|i| wanted[*i].iter().any(|(t, _)| *t == task)).collect();
            if mine.is_empty() {
                continue;
            }
            let run = self.run_task(skills, task, prompts, &mine, &starts, &trunk.hidden, &decisions, s)?;
            for (i, labels) in mine.into_iter().zip(run) {
                let weight = wanted[i].iter().find(|(t, _)| *t == task).map_or(0.0, |(_, w)| *w);
                answers[i].candidates.push(Candidate { task, weight, labels });
            }
        }
        for (i, a) in answers.iter_mut().enumerate() {
            a.settle(skills);
            if !decisions.is_empty() {
                a.decision = Some(std::mem::replace(
                    &mut decisions[i],
                    Decision {
                        class_log_posterior: Vec::new(),
                        task_weight: Vec::new(),
                        order: Vec::new(),
                        margin: 0.0,
                        entropy: 0.0,
                        novelty: 0.0,
                        abstain: false,
                    },
                ));
            }
        }
        Ok(answers)
    }

    /// Runs one task's module and head for the prompts `mine`; the labels' log scores.
    fn run_task(
        &self,
        skills: &Skills,
        task: usize,
        prompts: &[Prompt],
        mine: &[usize],
        starts: &[usize],
        trunk: &[f32],
        decisions: &[Decision],
        s: &mut Scratch,
    ) -> Result<Vec<Vec<(usize, usize, f32)>>> {
        let entry = &skills.manifest().tasks[task];
        let Some(head) = entry.head else { return Ok(vec![Vec::new(); mine.len()]) };
        let head = skills.head(head as usize, &self.base)?;
        let experts = skills.experts(entry, &self.base)?;
        let h = self.base.spec.hidden;
        let plain = entry.template == "{input}";
        let rendered: Vec<Prompt>;
        let (rows, hidden): (Vec<&Prompt>, Vec<f32>) = if plain {
            let rows: Vec<&Prompt> = mine.iter().map(|i| &prompts[*i]).collect();
            let hidden = mine
                .iter()
                .flat_map(|i| &trunk[starts[*i] * h..(starts[*i] + prompts[*i].tokens.len()) * h])
                .copied()
                .collect();
            (rows, hidden)
        } else {
            // The task puts words around the input, so its trunk differs.
            rendered = mine
                .iter()
                .map(|i| self.prompt(&skills.render(entry, &prompts[*i].text)?, None))
                .collect::<Result<_>>()?;
            let rows: Vec<&Prompt> = rendered.iter().collect();
            let hidden = self.trunk(&rows, skills.trunk(), None, s).hidden;
            (rows, hidden)
        };
        let logits = self.expert_logits(&rows, skills.trunk(), &hidden, &experts, head, s);
        let known = skills.selector_classes(head);
        Ok(logits
            .iter()
            .zip(mine)
            .map(|(row, i)| {
                let lp = head.log_scores(row, decisions.get(*i), &known);
                head.classes.iter().zip(lp).map(|((t, l), p)| (*t, *l, p)).collect()
            })
            .collect())
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
