//! Answering with labels: a batch of inputs, each with the modules that were chosen for it.

use super::{Answer, Candidate, Engine, batches, only_module};
use crate::error::Result;
use crate::features::{Pooler, Prompt};
use crate::forward::{self, Row, Scratch};
use crate::head::Head;
use crate::module::Module;
use crate::skills::Skills;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::selector::Decision;

/// A head asked about an input that has passed the trunk, with a module in force.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// The input.
    pub prompt: &'a Prompt,
    /// Its states after the trunk, `[tokens, hidden]`.
    pub states: &'a [f32],
    /// The module.
    pub module: Option<&'a Module>,
    /// The head.
    pub head: &'a Head,
}

/// One task that is run for one input.
struct Pair {
    input: usize,
    task: usize,
    weight: f32,
    /// The input in the task's words, where it puts some around it; and its states after the trunk.
    rendered: Option<(Prompt, Vec<f32>)>,
}

impl Engine {
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
        let decisions = match named {
            Some(_) => Vec::new(),
            None => self.decide(skills, &all, &trunk, s)?,
        };
        let mut pairs = Vec::new();
        for input in 0..prompts.len() {
            let mut add = |task, weight| pairs.push(Pair { input, task, weight, rendered: None });
            match (named, decisions.get(input)) {
                (Some(t), _) => add(t, 1.0),
                (None, Some(d)) => {
                    skills.selector().candidates(d).iter().for_each(|t| add(*t, d.task_weight[*t]));
                }
                (None, None) => add(only_module(skills)?, 1.0),
            }
        }
        self.render(skills, prompts, &mut pairs, s)?;
        let labels = self.labels(skills, prompts, &trunk.hidden, &pairs, &decisions, s)?;
        let mut decisions = decisions.into_iter();
        let mut answers: Vec<Answer> = Vec::with_capacity(prompts.len());
        for (pair, labels) in pairs.iter().zip(labels) {
            if answers.len() == pair.input {
                let decision = decisions.next();
                answers.push(Answer {
                    label: None,
                    probability: 0.0,
                    task: pair.task,
                    candidates: Vec::new(),
                    abstain: decision.as_ref().is_some_and(|d| d.abstain),
                    decision,
                });
            }
            answers[pair.input].candidates.push(Candidate { task: pair.task, weight: pair.weight, labels });
        }
        answers.iter_mut().for_each(|a| a.settle(skills));
        self.check(Some(skills))?;
        Ok(answers)
    }

    /// Puts the tasks' words around inputs: they have a trunk of their own then.
    fn render(&self, skills: &Skills, prompts: &[Prompt], pairs: &mut [Pair], s: &mut Scratch) -> Result<()> {
        let tasks = &skills.manifest().tasks;
        let wordy = |p: &&mut Pair| tasks[p.task].head.is_some() && tasks[p.task].template != "{input}";
        let mut wordy: Vec<&mut Pair> = pairs.iter_mut().filter(wordy).collect();
        let render = |p: &&mut Pair| self.prompt(&skills.render(&tasks[p.task], &prompts[p.input].text)?, None);
        let rendered = wordy.iter().map(render).collect::<Result<Vec<_>>>()?;
        let mut states = Vec::new();
        for chunk in batches(&rendered, self.batch) {
            let hidden = self.trunk(&chunk.iter().collect::<Vec<_>>(), skills.trunk(), None, s).hidden;
            let each = by_prompt(&hidden, chunk.iter(), self.base.spec.hidden);
            states.extend(each.map(<[f32]>::to_vec));
        }
        for (pair, rendered) in wordy.iter_mut().zip(rendered.into_iter().zip(states)) {
            pair.rendered = Some(rendered);
        }
        Ok(())
    }

    /// Log scores of each pair's labels, as (task, label, score); none where a task has no head.
    fn labels(
        &self,
        skills: &Skills,
        prompts: &[Prompt],
        trunk: &[f32],
        pairs: &[Pair],
        decisions: &[Decision],
        s: &mut Scratch,
    ) -> Result<Vec<Vec<(usize, usize, f32)>>> {
        let states: Vec<&[f32]> = by_prompt(trunk, prompts.iter(), self.base.spec.hidden).collect();
        let (mut asks, mut heads) = (Vec::new(), Vec::with_capacity(pairs.len()));
        for p in pairs {
            let entry = &skills.manifest().tasks[p.task];
            let head = entry.head.map(|h| skills.head(h as usize, &self.base)).transpose()?;
            let experts = if head.is_some() { skills.experts(entry, &self.base)? } else { Vec::new() };
            let (prompt, states) = match &p.rendered {
                Some((prompt, states)) => (prompt, states.as_slice()),
                None => (&prompts[p.input], states[p.input]),
            };
            heads.push((head, experts.len()));
            asks.extend(head.iter().flat_map(|head| experts.iter().map(|m| Ask { prompt, states, module: *m, head })));
        }
        let mut scores = self.ask(skills.trunk(), &asks, s).into_iter();
        Ok(pairs
            .iter()
            .zip(heads)
            .map(|(p, (head, experts))| {
                let Some(head) = head else { return Vec::new() };
                let logits = scores.by_ref().take(experts).flatten().collect::<Vec<f32>>();
                let lp = head.log_scores(&logits, decisions.get(p.input), &skills.selector_classes(head));
                head.classes.iter().zip(lp).map(|((t, l), lp)| (*t, *l, lp)).collect()
            })
            .collect())
    }

    /// Scores `[classes]` of each head for its input, after a trunk of `depth` layers. Whatever modules
    /// are in force, the base is read once for a batch of those whose heads read the same feature.
    pub fn ask(&self, depth: usize, asks: &[Ask<'_>], s: &mut Scratch) -> Vec<Vec<f32>> {
        let mut out = vec![Vec::new(); asks.len()];
        let mut left = Vec::new();
        for (i, a) in asks.iter().enumerate() {
            match a.head.choices() {
                Some(c) => out[i] = c.scores(self, depth, a.prompt, a.module, s),
                None => left.push(i),
            }
        }
        // Inputs of one module side by side: it is then put in force once.
        left.sort_by_key(|i| asks[*i].module.map_or(0, |m| std::ptr::from_ref(m).addr()));
        while let Some(first) = left.first() {
            let feature = &asks[*first].head.feature;
            let (mine, others): (Vec<usize>, Vec<usize>) =
                left.iter().partition(|i| asks[**i].head.feature == *feature);
            let mut mine = mine.as_slice();
            while !mine.is_empty() {
                let mut tokens = 0;
                let fit = mine.iter().take_while(|i| {
                    tokens += asks[**i].prompt.tokens.len();
                    tokens <= self.batch
                });
                let (now, later) = mine.split_at(fit.count().max(1));
                let batch: Vec<Ask<'_>> = now.iter().map(|i| asks[*i]).collect();
                let features = self.branch_features(depth, &batch, feature, s);
                for (i, x) in now.iter().zip(features.chunks_exact(feature.dim(self.base.spec.hidden))) {
                    out[*i] = asks[*i].head.logits(self.device(), x);
                }
                mine = later;
            }
            left = others;
        }
        out
    }

    /// The scores of one head for prompts that have passed the trunk, `trunk [tokens, hidden]`, with each
    /// module in force: of each prompt `[modules, classes]`, as [`Head::log_scores`] takes them.
    pub fn expert_scores(
        &self,
        prompts: &[&Prompt],
        depth: usize,
        trunk: &[f32],
        modules: &[Option<&Module>],
        head: &Head,
        s: &mut Scratch,
    ) -> Vec<Vec<f32>> {
        let states = by_prompt(trunk, prompts.iter().copied(), self.base.spec.hidden);
        let each = prompts.iter().zip(states);
        let asks: Vec<Ask<'_>> = each
            .flat_map(|(prompt, states)| modules.iter().map(move |m| Ask { prompt, states, module: *m, head }))
            .collect();
        self.ask(depth, &asks, s).chunks(modules.len()).map(<[Vec<f32>]>::concat).collect()
    }

    /// The feature `[asks, dim]` of inputs, each with its own module in force.
    fn branch_features(&self, depth: usize, asks: &[Ask<'_>], feature: &FeatureSpec, s: &mut Scratch) -> Vec<f32> {
        let mut hidden: Vec<f32> = asks.iter().flat_map(|a| a.states).copied().collect();
        let mut rows: Vec<Row<'_>> =
            asks.iter().map(|a| Row { tokens: a.prompt.tokens.len(), kv: None, module: a.module }).collect();
        self.pooled(depth, &mut rows, asks.iter().map(|a| a.prompt), &mut hidden, feature, s)
    }

    /// Runs rows from the trunk to the last layer that `feature` reads, and reads it.
    pub(super) fn pooled<'p>(
        &self,
        depth: usize,
        rows: &mut [Row<'_>],
        prompts: impl Iterator<Item = &'p Prompt>,
        hidden: &mut [f32],
        feature: &FeatureSpec,
        s: &mut Scratch,
    ) -> Vec<f32> {
        let mut pooler = Pooler::new(feature, &self.base, self.kernels, prompts);
        pooler.observe(depth, hidden);
        let end = (feature.max_layer() as usize).max(depth);
        forward::layers(self.device(), &self.base, depth..end, rows, hidden, s, &mut |l, h| pooler.observe(l, h));
        pooler.finish()
    }
}

/// States `[tokens, hidden]` of prompts one after another, cut into each prompt's.
fn by_prompt<'h, 'p>(
    mut states: &'h [f32],
    prompts: impl Iterator<Item = &'p Prompt>,
    hidden: usize,
) -> impl Iterator<Item = &'h [f32]> {
    prompts.map(move |p| {
        let (own, rest) = states.split_at(p.tokens.len() * hidden);
        states = rest;
        own
    })
}
