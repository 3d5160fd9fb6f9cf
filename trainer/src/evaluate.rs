//! Scores a stage on test rows, on the same path ([`Engine::candidates`], [`Engine::generate`]) and the same
//! bytes that serve.
//!
//! The trunk states of a test row never change and are computed once; a module's scores for a row are kept as
//! long as the module's bytes stay the same.

use crate::data::Prepared;
use crate::fit::Examples;
use crate::metrics::calibration::{Sure, expected_error};
use crate::metrics::detection::{Verdict, detection};
use crate::metrics::labels::{Class, f1, macro_f1};
use crate::metrics::text::{exact_match, rouge_l};
use crate::metrics::{StageScores, TaskScores};
use crate::stream::{Goal, Row, Task};
use conpet_formats::Result;
use conpet_formats::selector::Decision;
use conpet_runtime::answer::{Candidate, Memo, best_label};
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use conpet_runtime::text::{Choice, Request};
use std::collections::HashMap;

/// The prepared test rows of one task.
#[derive(Debug)]
pub struct TestSet {
    /// Index of the task in the bundle.
    pub task: usize,
    /// Rows as text.
    pub rows: Vec<Row>,
    /// Rows with trunk states and selector features.
    pub data: Prepared,
}

/// Scores stages, and keeps what need not be recomputed between them.
#[derive(Debug, Default)]
pub struct Evaluator {
    sets: Vec<TestSet>,
    /// Inputs of no task.
    strangers: Option<Prepared>,
    /// Head scores, by set, row, and digest of modules and head.
    scores: HashMap<(usize, usize, String), Vec<f32>>,
    /// Generated texts, by set, row, and digest of the module.
    texts: HashMap<(usize, usize, String), String>,
}

/// The kept head scores for some rows of a set.
struct Known<'a> {
    scores: &'a mut HashMap<(usize, usize, String), Vec<f32>>,
    set: usize,
    rows: &'a [usize],
    /// For each task, the digest of its modules and head.
    digests: &'a [String],
}

impl Known<'_> {
    fn key(&self, input: usize, task: usize) -> (usize, usize, String) {
        (self.set, self.rows[input], self.digests[task].clone())
    }
}

impl Memo for Known<'_> {
    fn scores(&self, input: usize, task: usize) -> Option<Vec<f32>> {
        self.scores.get(&self.key(input, task)).cloned()
    }

    fn keep(&mut self, input: usize, task: usize, scores: &[f32]) {
        self.scores.insert(self.key(input, task), scores.to_vec());
    }
}

impl Evaluator {
    /// Adds a task's test rows.
    pub fn add(&mut self, set: TestSet) {
        self.sets.push(set);
    }

    /// Sets the inputs of no task, prepared as test rows are.
    pub fn set_strangers(&mut self, rows: Prepared) {
        self.strangers = Some(rows);
    }

    /// Scores all sets on one stage, as if only the first `seen` tasks existed. `tasks` are the
    /// stream's, in the bundle's order.
    ///
    /// # Errors
    /// If a payload is damaged, or a row cannot be run.
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
        let (mut labelled, mut verdicts): (Vec<(Class, Option<Class>)>, Vec<Verdict>) = (Vec::new(), Vec::new());
        let mut sure: Vec<(usize, Sure)> = Vec::new();
        let digests: Vec<String> = (0..skills.manifest().tasks.len()).map(|t| digest(skills, t)).collect();
        for set in 0..self.sets.len() {
            let truth = self.sets[set].task;
            let n = self.sets[set].data.len();
            for rows in row_batches(&self.sets[set].data, engine.batch()) {
                let trunked = self.sets[set].data.trunked(&rows, skills.trunk());
                let decisions = engine.decide(skills, &trunked)?;
                verdicts.extend(decisions.iter().map(|d| (d.novelty, d.abstain)));
                let mut memo = Known { scores: &mut self.scores, set, rows: &rows, digests: &digests };
                // If the selector does not choose, the caller names the task.
                let named = (!skills.selector().chooses()).then_some(truth);
                let mut chosen = engine.candidates(skills, &trunked, &decisions, named, &mut memo)?;
                let known: &[Decision] = if skills.reads_selector(truth)? { &decisions } else { &[] };
                let mut alone = engine.candidates(skills, &trunked, known, Some(truth), &mut memo)?;
                let labels = chosen.iter_mut().chain(&mut alone).flatten().map(|c| &mut c.labels);
                labels.for_each(|l| l.retain(|(t, ..)| *t < seen));
                for (i, row) in rows.iter().enumerate() {
                    let decision = decisions.get(i);
                    // With a single module there is nothing to route.
                    let first = decision.map_or(truth, |d| d.order[0]);
                    out.rows[truth] += 1;
                    out.confusion[truth][first] += 1;
                    out.routed[truth] += usize::from(first == truth);
                    out.tasks[truth].refused += usize::from(decision.is_some_and(|d| d.abstain));
                    let (right, oracle) = match self.sets[set].rows[*row].goal.clone() {
                        Goal::Label(label) => {
                            let label = tasks[truth].labels.iter().position(|l| *l == label).unwrap_or(usize::MAX);
                            let answer = |c: &[Candidate]| best_label(c).map(|(_, t, l)| (t, l));
                            let (want, got) = ((truth, label), answer(&chosen[i]));
                            if let Some(f) = Engine::fast_of(skills, &self.sets[set].data.prompts[*row]) {
                                out.tasks[truth].fast += 1;
                                let fast = best_label(&f.candidates).map(|(_, t, l)| (t, l));
                                out.tasks[truth].flips += usize::from(fast != got);
                            }
                            labelled.push((want, got));
                            let p = best_label(&chosen[i]).map_or(0.0, |b| b.0);
                            sure.push((truth, (p, got == Some(want))));
                            (got == Some(want), answer(&alone[i]) == Some(want))
                        }
                        Goal::Completion(want) => {
                            let of = (set, *row);
                            let oracle = self.text(engine, skills, &tasks[truth], of, Choice::Task(truth))?;
                            // The answer of the chosen task: text of another module, or a label.
                            let answer = match serving(decision, truth) {
                                Choice::Task(t) if skills.is_generation(t) => {
                                    self.text(engine, skills, &tasks[t], of, Choice::Task(t))?
                                }
                                Choice::Task(_) => best_label(&chosen[i])
                                    .and_then(|(_, t, l)| tasks[t].labels.get(l).cloned())
                                    .unwrap_or_default(),
                                bare => self.text(engine, skills, &tasks[truth], of, bare)?,
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
        }
        let all: Vec<Sure> = sure.iter().map(|s| s.1).collect();
        out.ece = expected_error(&all);
        for (t, scores) in out.tasks.iter_mut().enumerate() {
            let own: Vec<Sure> = sure.iter().filter(|s| s.0 == t).map(|s| s.1).collect();
            scores.ece = expected_error(&own);
        }
        let f1 = f1(&labelled);
        out.tasks.iter_mut().enumerate().for_each(|(t, x)| x.macro_f1 = macro_f1(&f1, Some(t)));
        out.macro_f1 = macro_f1(&f1, None);
        if let Some(strangers) = &self.strangers {
            let mut unknown: Vec<Verdict> = Vec::new();
            for rows in row_batches(strangers, engine.batch()) {
                let decisions = engine.decide(skills, &strangers.trunked(&rows, skills.trunk()))?;
                unknown.extend(decisions.iter().map(|d| (d.novelty, d.abstain)));
            }
            out.detection = detection(&verdicts, &unknown);
        }
        Ok(out)
    }

    /// The text that is served for a row of a generation task.
    fn text(
        &mut self,
        engine: &Engine,
        skills: &Skills,
        task: &Task,
        (set, i): (usize, usize),
        choice: Choice,
    ) -> Result<String> {
        let in_force = match choice {
            Choice::Task(t) => digest(skills, t),
            _ => String::new(),
        };
        let key = (set, i, in_force);
        if let Some(t) = self.texts.get(&key) {
            return Ok(t.clone());
        }
        let row = &self.sets[set].rows[i];
        let request = match row.chat.is_empty() {
            true => Request { text: row.text.clone(), choice, ..Request::default() },
            false => {
                let (text, words) = crate::data::render(engine, task, row, &row.text)?;
                Request { text, words, raw: true, choice, ..Request::default() }
            }
        };
        let out = engine.generate(Some(skills), &request, &mut |_| true)?.text;
        self.texts.insert(key, out.clone());
        Ok(out)
    }
}

/// What is in force for a row's text: the bare base if the selector refuses it.
fn serving(decision: Option<&Decision>, truth: usize) -> Choice {
    match decision {
        None => Choice::Task(truth),
        Some(d) if d.abstain => Choice::Bare,
        Some(d) => Choice::Task(d.order[0]),
    }
}

/// The digests of the sections of a task's modules and head.
fn digest(skills: &Skills, task: usize) -> String {
    let m = skills.manifest();
    let entry = &m.tasks[task];
    let hex = |section: u32| skills.bundle().section_records()[section as usize].hex();
    let module: String =
        entry.module.iter().chain(&entry.ensemble).map(|x| hex(m.modules[*x as usize].section)).collect();
    let head = entry.head.map_or_else(String::new, |x| hex(m.heads[x as usize].section));
    // The same module and head say something else in another task's words.
    format!("{module}/{head}/{}/{}", entry.max_answer, entry.template)
}

/// All rows, divided into batches of at most `tokens` tokens.
fn row_batches(data: &Prepared, tokens: usize) -> Vec<Vec<usize>> {
    let mut out: Vec<Vec<usize>> = Vec::new();
    let mut sum = 0;
    for i in 0..data.len() {
        let n = data.tokens(i);
        if out.is_empty() || sum + n > tokens {
            out.push(Vec::new());
            sum = 0;
        }
        sum += n;
        if let Some(last) = out.last_mut() {
            last.push(i);
        }
    }
    out
}
