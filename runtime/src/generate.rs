//! Text: the prompt through trunk and branch with their caches, then token by token.

use crate::engine::{Engine, only_module};
use crate::error::{Code, Error, Result};
use crate::features::Prompt;
use crate::forward::{self, Row, Scratch};
use crate::kv::Kv;
use crate::module::Module;
use crate::sampler::{Sampler, SamplerConfig};
use crate::skills::Skills;
use conpet_formats::bundle::manifest::TaskKind;
use conpet_formats::selector::Decision;
use std::ops::Range;
use std::time::{Duration, Instant};

/// What to generate.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The user's text.
    pub text: String,
    /// What the selector reads, if it is not the whole text (a chat's last turn).
    pub select_on: Option<String>,
    /// The text came out of a chat template, and these parts of it are somebody's words: control
    /// tokens are read everywhere else. `None`: all of it is the user's.
    pub words: Option<Vec<Range<usize>>>,
    /// Put no task template around the text.
    pub raw: bool,
    /// The task, if the caller names it.
    pub task: Option<usize>,
    /// Most tokens to generate; `None` takes the task's own limit, or 128.
    pub max_tokens: Option<usize>,
    /// How to sample.
    pub sampler: SamplerConfig,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it.
    Stop,
    /// It reached the limit of the request, of the task, or of the context.
    Length,
    /// Whoever received it wanted no more.
    Interrupted,
}

impl Finish {
    /// As other servers call it in `finish_reason`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Generated {
    /// The answer's tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// The answer.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// The task whose module was in force; `None` is the bare base.
    pub task: Option<usize>,
    /// What the selector said.
    pub decision: Option<Decision>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time to the first token.
    pub prompt_time: Duration,
    /// Time for the rest.
    pub answer_time: Duration,
}

impl Engine {
    /// Generates an answer; `emit` gets its text piece by piece and returns false to stop.
    ///
    /// Without `skills` the bare base answers. The selector's choice falls to the bare base if it
    /// abstains.
    ///
    /// # Errors
    /// If the prompt is empty or too long, a payload is damaged, a task must be named, or a file changed
    /// while it was in use; no piece that was computed after such a change is emitted.
    pub fn generate(
        &self,
        skills: Option<&Skills>,
        request: &Request,
        s: &mut Scratch,
        emit: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generated> {
        let begin = Instant::now();
        let (task, decision) = match skills {
            None => (None, None),
            Some(skills) => self.choose(skills, request, s)?,
        };
        let entry = task.and_then(|t| skills.map(|s| &s.manifest().tasks[t]));
        let text = match (skills, entry) {
            (Some(skills), Some(e)) if !request.raw => skills.render(e, &request.text)?,
            _ => request.text.clone(),
        };
        let module = match (skills, entry.and_then(|e| e.module)) {
            (Some(skills), Some(m)) => Some(skills.module(m as usize, &self.base)?),
            _ => None,
        };
        let prompt = self.prompt(&text, request.words.as_deref())?;
        let own = entry.filter(|e| e.max_answer > 0).map(|e| e.max_answer as usize);
        let most = request.max_tokens.or(own).unwrap_or(128).min(self.context.saturating_sub(prompt.tokens.len()));
        let mut run = Sequence::new(self, skills.map_or(0, Skills::trunk));
        let mut logits = vec![0.0; self.base.spec.vocab];
        run.extend(self, &prompt.tokens, module, s, Some(&mut logits));
        let mut sampler = Sampler::new(request.sampler.clone());
        let mut history = prompt.tokens.clone();
        let mut out = Generated {
            tokens: Vec::new(),
            text: String::new(),
            finish: Finish::Length,
            task,
            decision,
            prompt_tokens: prompt.tokens.len(),
            prompt_time: begin.elapsed(),
            answer_time: Duration::ZERO,
        };
        let begin = Instant::now();
        let mut pending = Vec::new();
        while out.tokens.len() < most {
            let token = sampler.sample(&mut logits, &history);
            if self.base.tokenizer.is_end(token) {
                out.finish = Finish::Stop;
                break;
            }
            out.tokens.push(token);
            history.push(token);
            pending.extend_from_slice(&self.base.tokenizer.token_bytes(token));
            // A character may be spread over tokens: hold back what is not whole yet.
            let whole = whole_chars(&pending);
            if whole > 0 {
                let piece = String::from_utf8_lossy(&pending[..whole]).into_owned();
                pending.drain(..whole);
                out.text.push_str(&piece);
                // After the token's text, too, was read from the base.
                self.check(skills)?;
                if !emit(&piece) {
                    out.finish = Finish::Interrupted;
                    break;
                }
            }
            if out.tokens.len() < most {
                run.extend(self, &[token], module, s, Some(&mut logits));
            }
        }
        self.check(skills)?;
        if !pending.is_empty() {
            let piece = String::from_utf8_lossy(&pending).into_owned();
            out.text.push_str(&piece);
            emit(&piece);
        }
        out.answer_time = begin.elapsed();
        Ok(out)
    }

    /// The task to answer with; `None` if the selector abstains.
    fn choose(&self, skills: &Skills, request: &Request, s: &mut Scratch) -> Result<(Option<usize>, Option<Decision>)> {
        if request.task.is_some() {
            return Ok((request.task, None));
        }
        if !skills.selector().chooses() {
            return only_module(skills).map(|t| (Some(t), None));
        }
        let text = request.select_on.as_deref().unwrap_or(&request.text);
        let prompt = self.prompt(text, None)?;
        let trunk = self.trunk(&[&prompt], skills.trunk(), Self::trunk_feature(skills), s);
        let decision = self.decide(skills, &[&prompt], &trunk, s)?.pop();
        let Some(d) = decision else {
            return Err(Error::new(Code::Value, "the selector gave no decision for this input"));
        };
        let task = (!d.abstain).then(|| d.order[0]);
        Ok((task, Some(d)))
    }

    /// True if the task is answered by text.
    pub fn is_generation(skills: &Skills, task: usize) -> bool {
        skills.manifest().tasks[task].kind == TaskKind::Generation
    }
}

/// One sequence being continued: the caches of its trunk and of its branch.
#[derive(Debug)]
pub struct Sequence {
    trunk: Kv,
    branch: Kv,
    depth: usize,
    hidden: Vec<f32>,
    last: Vec<f32>,
}

impl Sequence {
    /// An empty sequence whose first `depth` layers are the trunk.
    pub fn new(engine: &Engine, depth: usize) -> Self {
        let spec = &engine.base.spec;
        Self {
            trunk: Kv::new(0..depth, spec.kv_dim(), engine.kv_type),
            branch: Kv::new(depth..spec.n_layer, spec.kv_dim(), engine.kv_type),
            depth,
            hidden: Vec::new(),
            last: vec![0.0; spec.hidden],
        }
    }

    /// Tokens so far.
    pub fn len(&self) -> usize {
        self.branch.len().max(self.trunk.len())
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of both caches.
    pub fn kv_bytes(&self) -> usize {
        self.trunk.bytes() + self.branch.bytes()
    }

    /// Forgets all tokens from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.trunk.truncate(len);
        self.branch.truncate(len);
    }

    /// Runs more tokens, in batches; `logits [vocab]` are those after the last one.
    pub fn extend(
        &mut self,
        engine: &Engine,
        tokens: &[u32],
        module: Option<&Module>,
        s: &mut Scratch,
        logits: Option<&mut [f32]>,
    ) {
        for chunk in tokens.chunks(engine.batch.max(1)) {
            engine.embed(chunk.iter().copied(), &mut self.hidden);
            let spec = &engine.base.spec;
            let steps = [(0..self.depth, &mut self.trunk, None), (self.depth..spec.n_layer, &mut self.branch, module)];
            for (layers, kv, module) in steps {
                if layers.is_empty() {
                    continue;
                }
                let mut rows = [Row { tokens: chunk.len(), kv: Some(kv), module }];
                let hidden = &mut self.hidden;
                forward::layers(engine.device(), &engine.base, layers, &mut rows, hidden, s, &mut |_, _| {});
            }
        }
        if let Some(logits) = logits {
            let h = engine.base.spec.hidden;
            let state = &self.hidden[self.hidden.len() - h..];
            engine.kernels.rms_norm(state, engine.base.output_norm(), engine.base.spec.norm_eps, &mut self.last);
            engine.output(&self.last, logits, 1);
        }
    }

    /// Logits `[tokens, vocab]` after each of the tokens: for parity tests and perplexity.
    pub fn all_logits(
        &mut self,
        engine: &Engine,
        prompt: &Prompt,
        module: Option<&Module>,
        s: &mut Scratch,
    ) -> Vec<f32> {
        let mut out = vec![0.0; prompt.tokens.len() * engine.base.spec.vocab];
        for (t, row) in prompt.tokens.iter().zip(out.chunks_exact_mut(engine.base.spec.vocab)) {
            self.extend(engine, &[*t], module, s, Some(row));
        }
        out
    }
}

impl Engine {
    /// Logits `[tokens, vocab]` of one prompt in one batch, without caches.
    pub fn logits(&self, prompt: &Prompt, module: Option<&Module>, s: &mut Scratch) -> Vec<f32> {
        let spec = &self.base.spec;
        let n = prompt.tokens.len();
        let (mut hidden, mut normed) = (Vec::new(), vec![0.0; n * spec.hidden]);
        self.embed(prompt.tokens.iter().copied(), &mut hidden);
        let mut rows = [Row { tokens: n, kv: None, module }];
        forward::layers(self.device(), &self.base, 0..spec.n_layer, &mut rows, &mut hidden, s, &mut |_, _| {});
        forward::normalise(self.device(), &hidden, self.base.output_norm(), spec, &mut normed);
        let mut out = vec![0.0; n * spec.vocab];
        self.output(&normed, &mut out, n);
        out
    }
}

/// Length of the longest prefix that does not end within a character.
fn whole_chars(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        // An incomplete end waits; an invalid middle will never become whole.
        Err(e) if e.error_len().is_none() => e.valid_up_to(),
        Err(_) => bytes.len(),
    }
}
