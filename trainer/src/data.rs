//! Prepared rows: tokens, states after the trunk (in a mapped file), and features for the selector.
//!
//! The states are computed once for each row, by the runtime's engine on the same quantized weights that will
//! be served; training then runs only the branch layers.

use crate::fit::{Examples, Target};
use crate::stream::{Goal, Row, Task};
use conpet_formats::feature::FeatureSpec;
use conpet_formats::mmap::Mapped;
use conpet_formats::quant::{self, QuantType};
use conpet_formats::{Code, Error, Result};
use conpet_runtime::chat::Message;
use conpet_runtime::engine::{Engine, Trunked};
use conpet_runtime::prompt::{Prompt, batches};
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// Rows of one split, ready for training, selection and scoring.
#[derive(Debug)]
pub struct Prepared {
    /// The tokens to train on: the input in its template, followed for generation by the answer.
    pub prompts: Vec<Arc<Prompt>>,
    /// Index of each row's first answer token; the number of tokens if it has no answer to learn.
    answers: Vec<usize>,
    /// Class of each row within the head; 0 for generation.
    pub classes: Vec<usize>,
    /// Selector features of the bare input, `[rows, dim]`.
    pub features: Vec<f32>,
    /// The bare inputs.
    pub inputs: Vec<Arc<Prompt>>,
    hidden: usize,
    states: Option<States>,
    ranges: Vec<Vec<Range<usize>>>,
}

/// Trunk states in a mapped file.
#[derive(Debug)]
struct States {
    map: Mapped,
    ty: QuantType,
    /// Offset of each row's first value.
    starts: Vec<usize>,
}

/// How rows are prepared.
#[derive(Debug, Clone, Copy)]
pub struct Plan<'a> {
    /// Layers of the trunk.
    pub trunk: usize,
    /// The feature that the selector reads from the trunk, if any.
    pub selector: Option<&'a FeatureSpec>,
    /// The feature that the head reads; `None` for generation.
    pub head: Option<&'a FeatureSpec>,
    /// Inputs are truncated to this many tokens.
    pub max_len: usize,
    /// Train a labelled row to generate its label's text, as a choice head needs.
    pub says_labels: bool,
    /// Type of the states in the file: F16 for training, F32 to measure exactly what will be served.
    pub keep: QuantType,
}

impl Prepared {
    /// Tokenizes rows, runs the trunk and keeps its states in `file` (no file, no states).
    ///
    /// # Errors
    /// If a row cannot be tokenized or the file cannot be written.
    pub fn new(
        engine: &Engine,
        task: &Task,
        rows: &[Row],
        plan: Plan<'_>,
        file: Option<&Path>,
        tick: &mut dyn FnMut(usize),
    ) -> Result<Self> {
        let mut prompts = Vec::with_capacity(rows.len());
        let mut answers = Vec::with_capacity(rows.len());
        let mut inputs = Vec::with_capacity(rows.len());
        for (i, r) in rows.iter().enumerate() {
            let named = |e: Error| e.in_section(format!("task {}, row {}", task.name, i + 1));
            let input = cut(engine, engine.prompt(&r.text, None).map_err(named)?, plan.max_len);
            let (rendered, words) = render(engine, task, r, &input.text).map_err(named)?;
            // A text that is answered goes on; one that is judged is complete.
            let goes_on = plan.says_labels || matches!(r.goal, Goal::Completion(_));
            let mut p = match goes_on {
                true => engine.opening(&rendered, words.as_deref()),
                false => engine.prompt(&rendered, words.as_deref()),
            }
            .map_err(named)?;
            answers.push(p.tokens.len());
            let answer = match &r.goal {
                Goal::Completion(text) => {
                    let tok = &engine.base.tokenizer;
                    let room = plan.max_len.saturating_sub(p.tokens.len()).max(8);
                    let mut answer = tok.encode(text, false).map_err(named)?;
                    answer.truncate(room);
                    answer.extend(tok.eos());
                    Some(answer)
                }
                Goal::Label(label) => {
                    plan.says_labels.then(|| label_tokens(engine, task, label)).transpose().map_err(named)?
                }
            };
            if let Some(answer) = answer {
                p.offsets.extend(answer.iter().map(|_| p.text.len()..p.text.len()));
                p.tokens.extend(answer);
            }
            prompts.push(Arc::new(p));
            inputs.push(Arc::new(input));
        }
        let classes = rows.iter().map(|r| task.label(r).unwrap_or(0)).collect();
        let ranges = prompts
            .iter()
            .map(|p| {
                plan.head.map_or(Vec::new(), |f| f.parts.iter().map(|x| x.pool.tokens(&p.text, &p.offsets)).collect())
            })
            .collect();
        let mut out = Self {
            prompts,
            answers,
            classes,
            features: Vec::new(),
            inputs,
            hidden: engine.base.spec.hidden,
            states: None,
            ranges,
        };
        // Where the input is what is trained on, one pass gives both.
        let same = task.template == conpet_formats::template::INPUT
            && out.prompts.iter().zip(&out.inputs).all(|(a, b)| a.tokens == b.tokens);
        if plan.selector.is_some() && !same {
            for chunk in batches(&out.inputs, engine.batch()) {
                out.features.extend(engine.trunk(chunk.to_vec(), 0, plan.selector, false).features);
                tick(0);
            }
        }
        let feature = plan.selector.filter(|_| same);
        if feature.is_none() && file.is_none() {
            return Ok(out);
        }
        let mut w = match file {
            None => None,
            Some(path) => {
                let f = std::fs::OpenOptions::new().write(true).create(true).truncate(true).open(path);
                Some((
                    path,
                    std::io::BufWriter::with_capacity(1 << 20, f.map_err(|e| Error::io("create", e).in_file(path))?),
                ))
            }
        };
        let (mut starts, mut at) = (Vec::new(), 0);
        for chunk in batches(&out.prompts, engine.batch()) {
            let depth = if w.is_some() { plan.trunk } else { 0 };
            let t = engine.trunk(chunk.to_vec(), depth, feature, false);
            out.features.extend(t.features);
            for p in chunk {
                starts.push(at);
                at += p.tokens.len() * out.hidden;
            }
            if let Some((path, w)) = &mut w {
                let bytes: Vec<u8> = match plan.keep {
                    QuantType::F32 => t.hidden.iter().flat_map(|v| v.to_le_bytes()).collect(),
                    _ => t.hidden.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
                };
                w.write_all(&bytes).map_err(|e| Error::io("write", e).in_file(&**path))?;
            }
            tick(chunk.len());
        }
        if let Some((path, mut w)) = w {
            w.flush().map_err(|e| Error::io("write", e).in_file(path))?;
            out.states = Some(States { map: Mapped::open(path)?, ty: plan.keep, starts });
        }
        Ok(out)
    }
}

impl Prepared {
    /// Some rows after a trunk of `depth` layers, in the form that the engine takes.
    pub fn trunked(&self, rows: &[usize], depth: usize) -> Trunked {
        let (mut hidden, width) = (Vec::new(), self.features.len() / self.len().max(1));
        rows.iter().for_each(|i| self.states(*i, &mut hidden));
        Trunked {
            prompts: rows.iter().map(|i| self.prompts[*i].clone()).collect(),
            depth,
            hidden,
            features: rows.iter().flat_map(|i| &self.features[i * width..(i + 1) * width]).copied().collect(),
            caches: Vec::new(),
        }
    }
}

/// A label as the answer to a prompt: after a space, unless the template ends in white space, and followed by
/// the end-of-text token, so that no label is a prefix of another.
pub(crate) fn label_tokens(engine: &Engine, task: &Task, label: &str) -> Result<Vec<u32>> {
    let apart = if task.template.ends_with(char::is_whitespace) { "" } else { " " };
    let tok = &engine.base.tokenizer;
    let mut tokens = tok.encode(&format!("{apart}{label}"), false)?;
    tokens.extend(tok.eos());
    Ok(tokens)
}

/// The prompt of a row: its text in the task's template, or its conversation in the base's chat template. For a
/// conversation, also the byte ranges that are the speakers' words; control tokens are read only elsewhere.
pub(crate) fn render(
    engine: &Engine,
    task: &Task,
    row: &Row,
    text: &str,
) -> Result<(String, Option<Vec<Range<usize>>>)> {
    if row.chat.is_empty() {
        return Ok((conpet_formats::template::render(&task.template, text)?, None));
    }
    let template = engine.base.chat_template()?.ok_or_else(|| {
        Error::new(Code::Missing, "the row is a conversation, but the base has no chat template")
            .hint("write {\"prompt\", \"completion\"} rows, or use a base with a chat template")
    })?;
    let messages: Vec<Message> =
        row.chat.iter().map(|(role, content)| Message { role: role.clone(), content: content.clone() }).collect();
    template.render(&messages, true).map(|(text, words)| (text, Some(words)))
}

/// Truncates a prompt to its first `n` tokens, of which the last still closes it, and its text accordingly.
fn cut(engine: &Engine, mut p: Prompt, n: usize) -> Prompt {
    if p.tokens.len() > n {
        let closing = engine.base.tokenizer.closing();
        let words = n.saturating_sub(usize::from(closing.is_some()));
        p.tokens.truncate(words);
        p.offsets.truncate(words);
        let mut end = p.offsets.last().map_or(0, |r| r.end);
        while !p.text.is_char_boundary(end) {
            end -= 1;
        }
        p.text.truncate(end);
        p.offsets.extend(closing.map(|_| end..end));
        p.tokens.extend(closing);
    }
    p
}

impl Examples for Prepared {
    fn len(&self) -> usize {
        self.prompts.len()
    }

    fn tokens(&self, i: usize) -> usize {
        self.prompts[i].tokens.len()
    }

    fn states(&self, i: usize, out: &mut Vec<f32>) {
        let n = self.tokens(i) * self.hidden;
        let at = out.len();
        out.resize(at + n, 0.0);
        if let Some(s) = &self.states {
            let size = s.ty.block_bytes();
            let bytes = &s.map[s.starts[i] * size..(s.starts[i] + n) * size];
            quant::dequantize(s.ty, bytes, &mut out[at..]);
        }
    }

    fn target(&self, i: usize) -> Target {
        let (tokens, from) = (&self.prompts[i].tokens, self.answers[i]);
        if from == tokens.len() {
            return Target::Class(self.classes[i] as u32);
        }
        // The state at position p predicts the token at p + 1.
        Target::Completion((from.max(1)..tokens.len()).map(|p| (p - 1, tokens[p])).collect())
    }

    fn ranges(&self, i: usize) -> Vec<Range<usize>> {
        self.ranges[i].clone()
    }
}

/// Some rows of a set.
#[derive(Debug)]
pub struct Subset<'a> {
    /// The set.
    pub data: &'a Prepared,
    /// Indices of the rows.
    pub rows: Vec<usize>,
}

impl Examples for Subset<'_> {
    fn len(&self) -> usize {
        self.rows.len()
    }
    fn tokens(&self, i: usize) -> usize {
        self.data.tokens(self.rows[i])
    }
    fn states(&self, i: usize, out: &mut Vec<f32>) {
        self.data.states(self.rows[i], out);
    }
    fn target(&self, i: usize) -> Target {
        self.data.target(self.rows[i])
    }
    fn ranges(&self, i: usize) -> Vec<Range<usize>> {
        self.data.ranges(self.rows[i])
    }
}

/// Rows of several tasks as one set, their classes renumbered for a head that serves them all.
#[derive(Debug, Default)]
pub struct Joined<'a> {
    /// Each set, and the first class of its task within the head.
    sets: Vec<(&'a Prepared, usize)>,
    /// (set, row).
    rows: Vec<(usize, usize)>,
}

impl<'a> Joined<'a> {
    /// All rows of these sets, with the first class of each.
    pub fn of(sets: impl IntoIterator<Item = (&'a Prepared, usize)>) -> Self {
        let mut out = Self::default();
        for (set, first) in sets {
            out.add(set, first);
        }
        out
    }

    /// Adds all rows of a set; returns their range among the joined rows.
    pub fn add(&mut self, set: &'a Prepared, first: usize) -> Range<usize> {
        let from = self.rows.len();
        self.rows.extend((0..set.len()).map(|i| (self.sets.len(), i)));
        self.sets.push((set, first));
        from..self.rows.len()
    }

    /// The class of a row within the head.
    pub fn class(&self, i: usize) -> usize {
        let (p, i, first) = self.at(i);
        p.classes[i] + first
    }

    fn at(&self, i: usize) -> (&'a Prepared, usize, usize) {
        let (set, row) = self.rows[i];
        let (p, first) = self.sets[set];
        (p, row, first)
    }
}

impl Examples for Joined<'_> {
    fn len(&self) -> usize {
        self.rows.len()
    }
    fn tokens(&self, i: usize) -> usize {
        let (p, i, _) = self.at(i);
        p.tokens(i)
    }
    fn states(&self, i: usize, out: &mut Vec<f32>) {
        let (p, i, _) = self.at(i);
        p.states(i, out);
    }
    fn target(&self, i: usize) -> Target {
        let (p, i, first) = self.at(i);
        match p.target(i) {
            Target::Class(c) => Target::Class(c + first as u32),
            other => other,
        }
    }
    fn ranges(&self, i: usize) -> Vec<Range<usize>> {
        let (p, i, _) = self.at(i);
        p.ranges(i)
    }
}
