//! Scores a stage on test rows with the runtime's own engine and the bytes that serve.
//!
//! The trunk of a test row never changes and is run once; a module's word on a row is kept for as
//! long as the module's bytes are the same. What is computed is what [`Engine::classify`] computes
//! (a test holds them together).

use crate::data::Prepared;
use crate::fit::Examples;
use crate::metrics::detection::{Verdict, detection};
use crate::metrics::labels::{Class, f1, macro_f1};
use crate::metrics::text::{exact_match, rouge_l};
use crate::metrics::{StageScores, TaskScores};
use crate::stream::{Goal, Row, Task};
use conpet_formats::Result;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::selector::Decision;
use conpet_runtime::engine::{Candidate, Engine, best_label};
use conpet_runtime::features::Prompt;
use conpet_runtime::forward::Scratch;
use conpet_runtime::generate::Request;
use conpet_runtime::skills::Skills;
use std::collections::HashMap;

/// One task's test rows, ready.
#[derive(Debug)]
pub struct TestSet {
    /// Position of the task in the bundle.
    pub task: usize,
    /// Rows as text.
    pub rows: Vec<Row>,
    /// Rows with trunk states and selector features.
    pub data: Prepared,
}

/// Keeps what need not be computed again between stages.
#[derive(Debug, Default)]
pub struct Evaluator {
    sets: Vec<TestSet>,
    /// Inputs of no task.
    strangers: Option<Prepared>,
    /// (set, row, digest of module and head) to logits.
    logits: HashMap<(usize, usize, String), Vec<f32>>,
    /// (set, row, digest of module) to generated text.
    texts: HashMap<(usize, usize, String), String>,
}

impl Evaluator {
    /// Adds a task's test rows.
    pub fn add(&mut self, set: TestSet) {
        self.sets.push(set);
    }

    /// Sets the inputs of no task, with what a test row has.
    pub fn set_strangers(&mut self, rows: Prepared) {
        self.strangers = Some(rows);
    }

    /// Scores all sets on one stage, as if only the first `seen` tasks existed. `tasks` are the
    /// stream's, in the bundle's order.
    ///
    /// # Errors
    /// If a payload is damaged or a row cannot be run.
    pub fn score(&mut self, engine: &Engine, skills: &Skills, tasks: &[Task], seen: usize) -> Result<StageScores> {
        let n_tasks = tasks.len();
        let mut out = StageScores {
            rows: vec![0; n_tasks],
            right: vec![0; n_tasks],
            routed: vec![0; n_tasks],
            oracle: vec![0; n_tasks],
            confusion: vec![vec![0; n_tasks]; n_tasks],
            tasks: tasks.iter().map(|t| TaskScores { metric: t.metric, ..TaskScores::default() }).collect(),
            ..StageScores::default()
        };
        let mut s = Scratch::default();
        let (mut labelled, mut known): (Vec<(Class, Option<Class>)>, Vec<Verdict>) = (Vec::new(), Vec::new());
        for set in 0..self.sets.len() {
            let truth = self.sets[set].task;
            let n = self.sets[set].data.len();
            let decisions = decide(engine, skills, &self.sets[set].data, &mut s)?;
            known.extend(decisions.iter().map(|d| (d.novelty, d.abstain)));
            let all: Vec<usize> = (0..n).collect();
            let wanted: Vec<Vec<usize>> = (0..n)
                .map(|i| match decisions.get(i) {
                    Some(d) => skills.selector().candidates(d).to_vec(),
                    None => vec![truth],
                })
                .collect();
            let mut candidates: Vec<Vec<Candidate>> = vec![Vec::new(); n];
            for task in 0..skills.manifest().tasks.len() {
                let mine: Vec<usize> = all.iter().copied().filter(|i| wanted[*i].contains(&task)).collect();
                let labels = self.labels(engine, skills, set, (task, seen), &mine, &decisions, &mut s)?;
                for (i, labels) in mine.into_iter().zip(labels) {
                    let weight = decisions.get(i).map_or(1.0, |d| d.task_weight[task]);
                    candidates[i].push(Candidate { task, weight, labels });
                }
            }
            let named = self.labels(engine, skills, set, (truth, seen), &all, &[], &mut s)?;
            for i in 0..n {
                candidates[i].sort_by(|a, b| b.weight.total_cmp(&a.weight));
                // With one module for everything there is nothing to route.
                let first = decisions.get(i).map_or(truth, |d| d.order[0]);
                out.rows[truth] += 1;
                out.confusion[truth][first] += 1;
                out.routed[truth] += usize::from(first == truth);
                let (right, oracle) = match self.sets[set].rows[i].goal.clone() {
                    Goal::Label(label) => {
                        let label = tasks[truth].labels.iter().position(|l| *l == label).unwrap_or(usize::MAX);
                        let answer = |c: &[Candidate]| best_label(c).map(|(_, t, l)| (t, l));
                        let alone = [Candidate { task: truth, weight: 1.0, labels: named[i].clone() }];
                        let (want, got) = ((truth, label), answer(&candidates[i]));
                        labelled.push((want, got));
                        (got == Some(want), answer(&alone) == Some(want))
                    }
                    Goal::Completion(want) => {
                        let oracle = self.text(engine, skills, tasks, set, i, truth, &mut s)?;
                        // What another task answers is another module's text, or a label.
                        let answer = match (first == truth, tasks[first].kind) {
                            (true, _) => oracle.clone(),
                            (_, TaskKind::Generation) => self.text(engine, skills, tasks, set, i, first, &mut s)?,
                            _ => best_label(&candidates[i])
                                .and_then(|(_, t, l)| tasks[t].labels.get(l).cloned())
                                .unwrap_or_default(),
                        };
                        let right = exact_match(&answer, &want);
                        let task = &mut out.tasks[truth];
                        *task.exact_match.get_or_insert(0.0) += f64::from(u8::from(right)) / n as f64;
                        *task.rouge_l.get_or_insert(0.0) += rouge_l(&answer, &want) / n as f64;
                        (right, exact_match(&oracle, &want))
                    }
                };
                out.right[truth] += usize::from(right);
                out.oracle[truth] += usize::from(oracle);
            }
        }
        let f1 = f1(&labelled);
        out.tasks.iter_mut().enumerate().for_each(|(t, x)| x.macro_f1 = macro_f1(&f1, Some(t)));
        out.macro_f1 = macro_f1(&f1, None);
        if let Some(strangers) = &self.strangers {
            let unknown = decide(engine, skills, strangers, &mut s)?;
            out.detection = detection(&known, &unknown.iter().map(|d| (d.novelty, d.abstain)).collect::<Vec<_>>());
        }
        Ok(out)
    }

    /// Log scores of a task's head on some rows, of labels of the first `seen` tasks; empty ones for a
    /// generation task.
    fn labels(
        &mut self,
        engine: &Engine,
        skills: &Skills,
        set: usize,
        (task, seen): (usize, usize),
        rows: &[usize],
        decisions: &[Decision],
        s: &mut Scratch,
    ) -> Result<Vec<Vec<(usize, usize, f32)>>> {
        let entry = &skills.manifest().tasks[task];
        let Some(h) = entry.head else { return Ok(vec![Vec::new(); rows.len()]) };
        let head = skills.head(h as usize, &engine.base)?;
        let experts = skills.experts(entry, &engine.base)?;
        let key = digest(skills, task);
        let missing: Vec<usize> =
            rows.iter().copied().filter(|i| !self.logits.contains_key(&(set, *i, key.clone()))).collect();
        let data = &self.sets[set].data;
        for batch in row_batches(data, &missing, engine.batch) {
            let rendered: Vec<Prompt>;
            let (prompts, hidden) = if entry.template == "{input}" {
                gather(data, &batch)
            } else {
                // The task puts words around the input, so its trunk differs.
                let prompt = |i: &usize| engine.prompt(&skills.render(entry, &data.prompts[*i].text)?, None);
                rendered = batch.iter().map(prompt).collect::<Result<_>>()?;
                let all: Vec<&Prompt> = rendered.iter().collect();
                let hidden = engine.trunk(&all, skills.trunk(), None, s).hidden;
                (all, hidden)
            };
            let logits = engine.expert_scores(&prompts, skills.trunk(), &hidden, &experts, head, s);
            for (i, row) in batch.iter().zip(logits) {
                self.logits.insert((set, *i, key.clone()), row);
            }
        }
        let known = skills.selector_classes(head);
        Ok(rows
            .iter()
            .map(|i| {
                let lp = head.log_scores(&self.logits[&(set, *i, key.clone())], decisions.get(*i), &known);
                head.classes.iter().zip(lp).filter(|((t, _), _)| *t < seen).map(|((t, l), p)| (*t, *l, p)).collect()
            })
            .collect())
    }

    fn text(
        &mut self,
        engine: &Engine,
        skills: &Skills,
        tasks: &[Task],
        set: usize,
        i: usize,
        task: usize,
        s: &mut Scratch,
    ) -> Result<String> {
        debug_assert!(skills.manifest().tasks[task].kind == TaskKind::Generation);
        let key = (set, i, digest(skills, task));
        if let Some(t) = self.texts.get(&key) {
            return Ok(t.clone());
        }
        let row = &self.sets[set].rows[i];
        let (text, words) = crate::data::render(engine, &tasks[task], row, &row.text)?;
        let own = skills.manifest().tasks[task].max_answer as usize;
        let request = Request { text, words, raw: true, task: Some(task), max_tokens: Some(own), ..Request::default() };
        let out = engine.generate(Some(skills), &request, s, &mut |_| true)?.text;
        self.texts.insert(key, out.clone());
        Ok(out)
    }
}

/// The selector's decisions on rows; none if it does not choose.
fn decide(engine: &Engine, skills: &Skills, data: &Prepared, s: &mut Scratch) -> Result<Vec<Decision>> {
    let selector = skills.selector();
    let device = (engine.kernels, &engine.threads);
    let Some((m, feature)) = selector.module().zip(selector.feature()) else {
        return Ok(selector.decide(device, &data.features, data.inputs.iter().map(Vec::as_slice)));
    };
    let module = skills.module(m, &engine.base)?;
    let mut out = Vec::new();
    for rows in row_batches(data, &(0..data.len()).collect::<Vec<_>>(), engine.batch) {
        let (prompts, mut hidden) = gather(data, &rows);
        let f = engine.branch(&prompts, skills.trunk(), &mut hidden, Some(module), feature, s);
        let tokens = rows.iter().map(|i| data.inputs[*i].as_slice());
        out.extend(selector.decide(device, &f, tokens));
    }
    Ok(out)
}

/// What identifies a task's modules and head: their sections' digests.
fn digest(skills: &Skills, task: usize) -> String {
    let m = skills.manifest();
    let entry = &m.tasks[task];
    let hex = |section: u32| skills.bundle().section_records()[section as usize].hex();
    let module: String =
        entry.module.iter().chain(&entry.ensemble).map(|x| hex(m.modules[*x as usize].section)).collect();
    let head = entry.head.map_or_else(String::new, |x| hex(m.heads[x as usize].section));
    format!("{module}/{head}")
}

fn row_batches(data: &Prepared, rows: &[usize], tokens: usize) -> Vec<Vec<usize>> {
    let mut out: Vec<Vec<usize>> = Vec::new();
    let mut sum = usize::MAX;
    for i in rows {
        let n = data.tokens(*i);
        if sum.saturating_add(n) > tokens {
            out.push(Vec::new());
            sum = 0;
        }
        sum += n;
        if let Some(last) = out.last_mut() {
            last.push(*i);
        }
    }
    out
}

fn gather<'p>(data: &'p Prepared, rows: &[usize]) -> (Vec<&'p Prompt>, Vec<f32>) {
    let mut hidden = Vec::new();
    rows.iter().for_each(|i| data.states(*i, &mut hidden));
    (rows.iter().map(|i| &data.prompts[*i]).collect(), hidden)
}
