//! The path of a prompt through a bundle: trunk, decision, branches, answer.
//!
//! Each step's result is a value that a caller may keep and hand to the next: [`Trunked`], [`Decision`],
//! [`Candidate`], [`Answer`]. `classify`, `route`, the trainer's evaluation and its calibration are all
//! this path, so what is measured is what runs.

use crate::blend::Blend;
use crate::engine::{Engine, Trunked};
use crate::error::{Code, Error, Result};
use crate::head::Head;
use crate::prompt::{Prompt, batches};
use crate::session::{Sequence, Session};
use crate::skills::Skills;
use conpet_formats::bundle::manifest::TaskEntry;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::head::log_softmax;
use conpet_formats::selector::Decision;
use conpet_formats::template;
use std::sync::Arc;

/// The answer to one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The best label, if the chosen task has labels.
    pub label: Option<String>,
    /// The label's probability, the task's included.
    pub probability: f32,
    /// The task that answered (an index into the manifest's tasks).
    pub task: usize,
    /// Every candidate that was run, best task first.
    pub candidates: Vec<Candidate>,
    /// The selector's decision; `None` if the task was named or there is only one module.
    pub decision: Option<Decision>,
    /// Whether the selector refuses the input: it is like none of the tasks.
    pub abstain: bool,
}

/// One task that was run for an input.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Index into the manifest's tasks.
    pub task: usize,
    /// The selector's weight for the task.
    pub weight: f32,
    /// Log score of each label of the module's head (see [`Head::log_scores`]): (task, label index, score).
    /// Empty for a task that generates text.
    pub labels: Vec<(usize, usize, f32)>,
}

/// A store of head scores, so that a score computed once can be used again.
pub trait Memo {
    /// The stored scores of a task's head for an input (by its index in the batch), `[experts, classes]`.
    fn scores(&self, input: usize, task: usize) -> Option<Vec<f32>>;

    /// Stores such scores.
    fn keep(&mut self, input: usize, task: usize, scores: &[f32]);
}

/// Stores nothing.
impl Memo for () {
    fn scores(&self, _input: usize, _task: usize) -> Option<Vec<f32>> {
        None
    }

    fn keep(&mut self, _input: usize, _task: usize, _scores: &[f32]) {}
}

/// A request to score an input that has passed the trunk.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The batch that holds the input.
    pub trunked: &'a Trunked,
    /// Index of the input in the batch.
    pub input: usize,
    /// The blend in force.
    pub blend: &'a Blend,
    /// The head.
    pub head: &'a Head,
}

impl Ask<'_> {
    fn prompt(&self) -> &Prompt {
        &self.trunked.prompts[self.input]
    }
}

/// One task that is run for one input.
struct Run {
    input: usize,
    task: usize,
    weight: f32,
}

impl Engine {
    /// Answers a batch of texts with labels.
    ///
    /// `task` names the task for all of them; otherwise the selector chooses for each. An input whose task
    /// generates text gets no label: [`Engine::write`] continues from there.
    ///
    /// # Errors
    /// If a text is empty or too long, a payload is damaged, or the selector needs a task name.
    pub fn classify(&self, skills: &Skills, texts: &[&str], task: Option<usize>) -> Result<Vec<Answer>> {
        Ok(self.answer_texts(skills, texts, task)?.into_iter().flat_map(|(_, answers)| answers).collect())
    }

    /// As [`Engine::classify`]; returns the answers batch by batch, with each batch's states after the trunk.
    ///
    /// # Errors
    /// See [`Engine::classify`].
    pub fn answer_texts(
        &self,
        skills: &Skills,
        texts: &[&str],
        task: Option<usize>,
    ) -> Result<Vec<(Trunked, Vec<Answer>)>> {
        let prompts = texts.iter().map(|t| self.prompt(t, None).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let chooses = match task {
            None => true,
            Some(t) => skills.reads_selector(t)?,
        };
        let feature = Self::trunk_feature(skills).filter(|_| chooses);
        batches(&prompts, self.batch())
            .map(|batch| {
                let trunked = self.trunk(batch.to_vec(), skills.trunk(), feature, skills.continues());
                let answers = self.answer(skills, &trunked, task, &mut ())?;
                Ok((trunked, answers))
            })
            .collect()
    }

    /// Answers a text with a label by its n-grams alone, without a pass of the base; `None` where they are not sure
    /// enough, or the task generates text.
    ///
    /// # Errors
    /// If the text is empty or too long.
    pub fn fast(&self, skills: &Skills, text: &str) -> Result<Option<Answer>> {
        if !skills.selector().has_fast() {
            return Ok(None);
        }
        Ok(Self::fast_of(skills, &self.prompt(text, None)?))
    }

    /// As [`Engine::fast`], for a tokenized input.
    pub fn fast_of(skills: &Skills, prompt: &Prompt) -> Option<Answer> {
        let (class, probability) = skills.selector().fast(prompt.words())?;
        let (task, label) = skills.label_of(class)?;
        Some(Answer {
            label: skills.manifest().tasks[task].labels.get(label).cloned(),
            probability,
            task,
            candidates: vec![Candidate { task, weight: probability, labels: vec![(task, label, 0.0)] }],
            decision: None,
            abstain: false,
        })
    }

    /// Answers prompts that have passed the trunk.
    ///
    /// # Errors
    /// See [`Engine::classify`].
    pub fn answer(
        &self,
        skills: &Skills,
        trunked: &Trunked,
        named: Option<usize>,
        memo: &mut dyn Memo,
    ) -> Result<Vec<Answer>> {
        // A named task does without a decision, but not without what the selector knows of its labels.
        let decides = match named {
            None => true,
            Some(t) => skills.reads_selector(t)?,
        };
        let decisions = if decides { self.decide(skills, trunked)? } else { Vec::new() };
        let candidates = self.candidates(skills, trunked, &decisions, named, memo)?;
        let mut decisions = decisions.into_iter().filter(|_| named.is_none());
        let answers = candidates.into_iter().map(|c| Answer::new(skills, c, decisions.next())).collect();
        self.check(Some(skills))?;
        Ok(answers)
    }

    /// The feature that the selector reads from the trunk; none for `conpet`, which runs a pass of its own.
    pub fn trunk_feature(skills: &Skills) -> Option<&FeatureSpec> {
        skills.selector().feature().filter(|_| skills.selector().module().is_none())
    }

    /// Decisions of the bundle's selector for prompts that have passed the trunk.
    ///
    /// Empty if the selector does not choose (`task`, `single`).
    ///
    /// # Errors
    /// If the selector's module is damaged, or a file changed while it was in use.
    pub fn decide(&self, skills: &Skills, trunked: &Trunked) -> Result<Vec<Decision>> {
        let selector = skills.selector();
        let words = trunked.prompts.iter().map(|p| p.words());
        let decisions = match selector.module().zip(selector.feature()) {
            None => selector.decide(self.cpu(), &trunked.features, words),
            Some((m, feature)) => {
                let blend = Blend::from(skills.module(m)?);
                let prompts = trunked.prompts.iter().map(|p| (&**p, &blend));
                let features = self.branch(trunked.depth, prompts, &mut trunked.hidden.clone(), feature);
                selector.decide(self.cpu(), &features, words)
            }
        };
        if selector.chooses() && decisions.len() != trunked.prompts.len() {
            let what = format!("{} decisions for {} inputs", decisions.len(), trunked.prompts.len());
            return Err(Error::new(Code::Value, what).hint("pass the trunk with the feature that the selector reads"));
        }
        self.check(Some(skills))?;
        Ok(decisions)
    }

    /// Runs, for each prompt, its candidate tasks: the named one, those that the selector's decision leaves
    /// open, or the only one.
    ///
    /// # Errors
    /// If a payload is damaged, or a task must be named.
    pub fn candidates(
        &self,
        skills: &Skills,
        trunked: &Trunked,
        decisions: &[Decision],
        named: Option<usize>,
        memo: &mut dyn Memo,
    ) -> Result<Vec<Vec<Candidate>>> {
        let mut runs = Vec::new();
        for input in 0..trunked.prompts.len() {
            match (named, decisions.get(input)) {
                (Some(task), _) => runs.push(Run { input, task, weight: 1.0 }),
                (None, Some(d)) => {
                    let chosen = skills.selector().candidates(d).iter();
                    runs.extend(chosen.map(|t| Run { input, task: *t, weight: d.task_weight[*t] }));
                }
                (None, None) => runs.push(Run { input, task: skills.only_task()?, weight: 1.0 }),
            }
        }
        let scores = self.run_heads(skills, trunked, &runs, memo)?;
        let mut out = vec![Vec::new(); trunked.prompts.len()];
        for (r, scores) in runs.into_iter().zip(scores) {
            let labels = match scores {
                None => by_selector(skills, r.task, decisions.get(r.input)),
                Some((head, scores)) => {
                    let lp = head.log_scores(&scores, decisions.get(r.input), &skills.selector_classes(&head));
                    head.classes.iter().zip(lp).map(|((t, l), lp)| (*t, *l, lp)).collect()
                }
            };
            out[r.input].push(Candidate { task: r.task, weight: r.weight, labels });
        }
        out.iter_mut().for_each(|c| c.sort_by(|a, b| b.weight.total_cmp(&a.weight)));
        Ok(out)
    }

    /// The head of each run and its scores `[experts, classes]`; `None` where a task has no head.
    fn run_heads(
        &self,
        skills: &Skills,
        trunked: &Trunked,
        runs: &[Run],
        memo: &mut dyn Memo,
    ) -> Result<Vec<Option<(Arc<Head>, Vec<f32>)>>> {
        let tasks = &skills.manifest().tasks;
        let mut out = Vec::with_capacity(runs.len());
        for r in runs {
            let head = tasks[r.task].head.map(|h| skills.head(h as usize)).transpose()?;
            out.push(head.map(|h| (h, memo.scores(r.input, r.task).unwrap_or_default())));
        }
        let missing: Vec<usize> =
            (0..runs.len()).filter(|i| out[*i].as_ref().is_some_and(|x| x.1.is_empty())).collect();
        // A task whose template adds words to the input needs a trunk pass of its own.
        let (plain, worded): (Vec<usize>, Vec<usize>) =
            missing.into_iter().partition(|i| tasks[runs[*i].task].template == template::INPUT);
        let rendered = self.rendered(skills, trunked, &worded.iter().map(|i| &runs[*i]).collect::<Vec<_>>())?;
        let there = plain.iter().map(|i| (*i, trunked, runs[*i].input));
        let batches = rendered.iter().flat_map(|t| (0..t.prompts.len()).map(move |i| (t, i)));
        let places: Vec<(usize, &Trunked, usize)> =
            there.chain(worded.iter().zip(batches).map(|(i, (t, input))| (*i, t, input))).collect();
        let experts = places.iter().map(|(i, ..)| skills.experts(&tasks[runs[*i].task])).collect::<Result<Vec<_>>>()?;
        let asks: Vec<Ask<'_>> = places
            .iter()
            .zip(&experts)
            .flat_map(|((i, trunked, input), blends)| {
                let head = out[*i].as_ref().map(|x| &*x.0);
                blends.iter().filter_map(move |blend| Some(Ask { trunked, input: *input, blend, head: head? }))
            })
            .collect();
        let mut scores = self.ask(&asks).into_iter();
        let scored: Vec<Vec<f32>> = experts.iter().map(|e| scores.by_ref().take(e.len()).flatten().collect()).collect();
        for ((i, ..), scores) in places.iter().zip(scored) {
            memo.keep(runs[*i].input, runs[*i].task, &scores);
            if let Some(x) = &mut out[*i] {
                x.1 = scores;
            }
        }
        Ok(out)
    }

    /// Renders inputs with their tasks' templates and runs them through the trunk.
    fn rendered(&self, skills: &Skills, trunked: &Trunked, runs: &[&Run]) -> Result<Vec<Trunked>> {
        let prompts = runs
            .iter()
            .map(|r| {
                let text = Self::in_words_of(&skills.manifest().tasks[r.task], &trunked.prompts[r.input].text)?;
                self.prompt(&text, None).map(Arc::new)
            })
            .collect::<Result<Vec<_>>>()?;
        let keep = !trunked.caches.is_empty();
        Ok(batches(&prompts, self.batch()).map(|b| self.trunk(b.to_vec(), trunked.depth, None, keep)).collect())
    }

    /// A text rendered with a task's template.
    pub(crate) fn in_words_of(task: &TaskEntry, text: &str) -> Result<String> {
        template::render(&task.template, text).map_err(|e| e.in_section(format!("task {}", task.name)))
    }

    /// Scores `[classes]` of each request. Requests whose heads read the same feature share batches, so the
    /// base's weights are read once for them all, whichever modules are in force.
    pub fn ask(&self, asks: &[Ask<'_>]) -> Vec<Vec<f32>> {
        let mut out = vec![Vec::new(); asks.len()];
        let mut left = Vec::new();
        for (i, a) in asks.iter().enumerate() {
            match a.head.choices() {
                Some(c) => {
                    let mut session = Session::new(self, a.trunked.depth);
                    let tokens = self.unclosed(&a.prompt().tokens);
                    let sequence = continued(&session, a.blend.clone(), tokens, Some((a.trunked, a.input)));
                    out[i] = c.scores(&mut session, sequence);
                }
                None => left.push(i),
            }
        }
        // Inputs of one module lie side by side, so that it is put in force once.
        left.sort_by_key(|i| asks[*i].blend.modules().first().map(|m| m.id()));
        while let Some(first) = left.first() {
            let feature = &asks[*first].head.feature;
            let (mine, others): (Vec<usize>, Vec<usize>) =
                left.iter().partition(|i| asks[**i].head.feature == *feature);
            let mut mine = mine.as_slice();
            while !mine.is_empty() {
                let mut tokens = 0;
                let fit = mine.iter().take_while(|i| {
                    tokens += asks[**i].prompt().tokens.len();
                    tokens <= self.batch()
                });
                let (now, later) = mine.split_at(fit.count().max(1));
                let depth = asks[*first].trunked.depth;
                let mut hidden: Vec<f32> =
                    now.iter().flat_map(|i| asks[*i].trunked.states(asks[*i].input)).copied().collect();
                let prompts = now.iter().map(|i| (asks[*i].prompt(), asks[*i].blend));
                let features = self.branch(depth, prompts, &mut hidden, feature);
                for (i, x) in now.iter().zip(features.chunks_exact(feature.dim(self.base.spec.hidden))) {
                    out[*i] = asks[*i].head.logits(self.cpu(), x);
                }
                mine = later;
            }
            left = others;
        }
        out
    }

    /// Fails if the file of the base or the bundle was truncated or rewritten since it was opened, or could not
    /// be read. Call it before an answer is given out; [`Engine::classify`], [`Engine::generate`] and
    /// [`Engine::decide`] do.
    ///
    /// # Errors
    /// `E_CHANGED`, or `E_DIGEST` for a bundle that was rewritten in place.
    pub fn check(&self, skills: Option<&Skills>) -> Result<()> {
        self.base.check()?;
        skills.map_or(Ok(()), |s| s.bundle().check())
    }
}

/// Log posterior of the labels of a task that has no head: the selector's own, among these labels.
fn by_selector(skills: &Skills, task: usize, decision: Option<&Decision>) -> Vec<(usize, usize, f32)> {
    let own = skills.own_classes(task).filter(|_| skills.manifest().tasks[task].by_selector());
    let Some((d, classes)) = decision.zip(own) else { return Vec::new() };
    let mut lp = d.class_log_posterior[classes].to_vec();
    log_softmax(&mut lp, 1.0);
    lp.into_iter().enumerate().map(|(l, lp)| (task, l, lp)).collect()
}

/// A sequence of these tokens that continues from the trunk states of an input with the same first tokens.
pub(crate) fn continued(session: &Session, blend: Blend, tokens: &[u32], from: Option<(&Trunked, usize)>) -> Sequence {
    let mut sequence = match from.and_then(|(t, i)| Some((t, i, t.caches.get(i)?))) {
        None => session.sequence(blend),
        Some((t, i, cache)) => {
            let shared = shared(&t.prompts[i].tokens, tokens);
            let states = t.states(i);
            let width = states.len() / t.prompts[i].tokens.len();
            let mut cache = cache.clone();
            cache.truncate(shared);
            session.after_trunk(blend, tokens[..shared].to_vec(), cache, states[..shared * width].to_vec())
        }
    };
    let done = sequence.tokens().len();
    sequence.push(&tokens[done..]);
    sequence
}

/// Length of the longest common prefix.
pub(crate) fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

impl Answer {
    /// The best label of the candidates, which are sorted by falling weight.
    fn new(skills: &Skills, candidates: Vec<Candidate>, decision: Option<Decision>) -> Self {
        let best = best_label(&candidates);
        let (probability, task, label) = match best {
            Some((p, t, l)) => (p, t, skills.manifest().tasks[t].labels.get(l).cloned()),
            None => (0.0, candidates.first().map_or(0, |c| c.task), None),
        };
        Self { label, probability, task, candidates, abstain: decision.as_ref().is_some_and(|d| d.abstain), decision }
    }
}

/// The label with the highest `log weight(task) + log p(label | task)`: (that probability, task, label). The weight
/// of tasks that were not run is no label's.
///
/// `None` if the heaviest candidate (the first) generates text.
pub fn best_label(candidates: &[Candidate]) -> Option<(f32, usize, usize)> {
    if candidates.first()?.labels.is_empty() {
        return None;
    }
    let scored =
        || candidates.iter().flat_map(|c| c.labels.iter().map(|(t, l, p)| (c.weight.max(1e-30).ln() + p, *t, *l)));
    let best = scored().reduce(|a, b| if b.0 > a.0 { b } else { a })?;
    Some((best.0.exp().min(1.0), best.1, best.2))
}
