//! Text: an answer token by token, and conversations that compute only what is new.

use crate::answer::{continued, shared};
use crate::blend::Blend;
use crate::engine::{Engine, Trunked};
use crate::error::{Code, Error, Result};
use crate::prompt::Prompt;
use crate::sampler::{Sampler, SamplerConfig};
use crate::session::{Sequence, Session};
use crate::skills::Skills;
use conpet_formats::selector::Decision;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Tokens of an answer where neither the request nor the task says how many.
const MOST_TOKENS: usize = 128;

/// What is in force for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// What the selector chooses: the bare base if it refuses the input.
    #[default]
    Selected,
    /// A task by its index in the manifest.
    Task(usize),
    /// Nothing.
    Bare,
}

impl From<Option<usize>> for Choice {
    /// The task that was named, or what the selector chooses.
    fn from(task: Option<usize>) -> Self {
        task.map_or(Self::Selected, Self::Task)
    }
}

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
    /// What is in force.
    pub choice: Choice,
    /// Most tokens to generate; `None` takes the task's own limit, or 128.
    pub max_tokens: Option<usize>,
    /// How to sample.
    pub sampler: SamplerConfig,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
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
#[non_exhaustive]
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

/// A conversation: what was computed for one answer is kept for the next.
#[derive(Debug)]
pub struct Dialogue {
    engine: Engine,
    skills: Option<Skills>,
    session: Session,
    sequence: Option<Sequence>,
}

/// Which task answers, and what was computed to find out.
struct Routed {
    task: Option<usize>,
    decision: Option<Decision>,
    trunked: Option<Trunked>,
}

impl Engine {
    /// Generates an answer; `emit` gets its text piece by piece and returns false to stop.
    ///
    /// Without `skills` the bare base answers.
    ///
    /// # Errors
    /// If the prompt is empty or too long, a payload is damaged, a task must be named, or a file changed
    /// while it was in use; no piece that was computed after such a change is emitted.
    pub fn generate(
        &self,
        skills: Option<&Skills>,
        request: &Request,
        emit: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generated> {
        let begin = Instant::now();
        let routed = self.route(skills, request)?;
        Dialogue::new(self, skills).write(routed, request, begin, emit)
    }

    /// Generates the answer of a task to an input that has passed the trunk: one whose
    /// [`crate::answer::Answer`] has no label.
    ///
    /// # Errors
    /// See [`Engine::generate`].
    pub fn write(
        &self,
        skills: &Skills,
        (trunked, input): (&Trunked, usize),
        request: &Request,
        emit: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generated> {
        let Choice::Task(task) = request.choice else { return self.generate(Some(skills), request, emit) };
        let one = Trunked {
            prompts: vec![trunked.prompts[input].clone()],
            depth: trunked.depth,
            hidden: trunked.states(input).to_vec(),
            features: Vec::new(),
            caches: trunked.caches.get(input).cloned().into_iter().collect(),
        };
        let routed = Routed { task: Some(task), decision: None, trunked: Some(one) };
        Dialogue::new(self, Some(skills)).write(routed, request, Instant::now(), emit)
    }

    fn route(&self, skills: Option<&Skills>, request: &Request) -> Result<Routed> {
        let known = |task| Ok(Routed { task, decision: None, trunked: None });
        let Some(skills) = skills else { return known(None) };
        match request.choice {
            Choice::Bare => return known(None),
            Choice::Task(t) => return known(Some(t)),
            Choice::Selected if !skills.selector().chooses() => return known(Some(skills.only_task()?)),
            Choice::Selected => {}
        }
        let text = request.select_on.as_deref().unwrap_or(&request.text);
        let prompt = Arc::new(self.prompt(text, None)?);
        let trunked = self.trunk(vec![prompt], skills.trunk(), Self::trunk_feature(skills), true);
        let decision = self.decide(skills, &trunked)?.pop();
        let d = decision
            .ok_or_else(|| Error::new(Code::Value, "the selector gave no decision for this input"))?;
        let task = (!d.abstain).then(|| d.order[0]);
        Ok(Routed { task, decision: Some(d), trunked: Some(trunked) })
    }
}

impl Dialogue {
    /// A conversation without turns yet.
    pub fn new(engine: &Engine, skills: Option<&Skills>) -> Self {
        let session = Session::new(engine, skills.map_or(0, Skills::trunk));
        Self { engine: engine.clone(), skills: skills.cloned(), session, sequence: None }
    }

    /// Generates an answer as [`Engine::generate`] does, and computes only what the request's text does
    /// not share with the conversation so far: the branch again if another module answers, and nothing of
    /// earlier turns otherwise.
    ///
    /// # Errors
    /// See [`Engine::generate`].
    pub fn answer(&mut self, request: &Request, emit: &mut dyn FnMut(&str) -> bool) -> Result<Generated> {
        let begin = Instant::now();
        let routed = self.engine.route(self.skills.as_ref(), request)?;
        self.write(routed, request, begin, emit)
    }

    /// Bytes that its caches hold.
    pub fn kv_bytes(&self) -> usize {
        self.sequence.as_ref().map_or(0, Sequence::kv_bytes)
    }

    fn write(
        &mut self,
        routed: Routed,
        request: &Request,
        begin: Instant,
        emit: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generated> {
        let (engine, skills) = (self.engine.clone(), self.skills.clone());
        let entry = routed.task.and_then(|t| skills.as_ref().map(|s| &s.manifest().tasks[t]));
        let (prompt, blend) = match (&skills, entry) {
            (Some(skills), Some(task)) if !request.raw => {
                (engine.task_prompt(task, &request.text)?, skills.blend(task)?)
            }
            (Some(skills), Some(task)) => {
                (engine.prompt(&request.text, request.words.as_deref())?, skills.blend(task)?)
            }
            _ => (engine.prompt(&request.text, request.words.as_deref())?, Blend::none()),
        };
        let own = entry.filter(|e| e.max_answer > 0).map(|e| e.max_answer as usize);
        let wanted = request.max_tokens.or(own).unwrap_or(MOST_TOKENS);
        let room = engine.context().saturating_sub(prompt.tokens.len());
        let mut sequence = self.begin(&prompt, blend, routed.trunked.as_ref());
        sequence.set_sampler(Sampler::new(request.sampler.clone()));
        let mut out = Generated {
            tokens: Vec::new(),
            text: String::new(),
            finish: Finish::Length,
            task: routed.task,
            decision: routed.decision,
            prompt_tokens: prompt.tokens.len(),
            prompt_time: Duration::ZERO,
            answer_time: Duration::ZERO,
        };
        self.session.run(&mut [&mut sequence]);
        out.prompt_time = begin.elapsed();
        let begin = Instant::now();
        let mut pending = Vec::new();
        while out.tokens.len() < wanted.min(room) {
            self.session.step(&mut [&mut sequence]);
            let token = sequence.tokens()[sequence.tokens().len() - 1];
            if engine.base.tokenizer.is_end(token) {
                sequence.truncate(sequence.tokens().len() - 1);
                out.finish = Finish::Stop;
                break;
            }
            out.tokens.push(token);
            pending.extend_from_slice(&engine.base.tokenizer.token_bytes(token));
            // A character may be spread over tokens: hold back what is not whole yet.
            let whole = whole_chars(&pending);
            if whole > 0 {
                let piece = String::from_utf8_lossy(&pending[..whole]).into_owned();
                pending.drain(..whole);
                out.text.push_str(&piece);
                // After the token's text, too, was read from the base.
                engine.check(skills.as_ref())?;
                if !emit(&piece) {
                    out.finish = Finish::Interrupted;
                    break;
                }
            }
        }
        engine.check(skills.as_ref())?;
        if !pending.is_empty() {
            let piece = String::from_utf8_lossy(&pending).into_owned();
            out.text.push_str(&piece);
            emit(&piece);
        }
        self.sequence = Some(sequence);
        out.answer_time = begin.elapsed();
        Ok(out)
    }

    /// The sequence that holds the prompt, with as much of it run already as is known of this conversation
    /// or of the input.
    fn begin(&mut self, prompt: &Prompt, blend: Blend, trunked: Option<&Trunked>) -> Sequence {
        let of_input = trunked.map_or(0, |t| shared(&t.prompts[0].tokens, &prompt.tokens));
        if let Some(mut s) = self.sequence.take().filter(|s| shared(s.tokens(), &prompt.tokens) >= of_input) {
            // At least the last token is run, so that there are logits after it.
            s.truncate(shared(s.tokens(), &prompt.tokens).min(prompt.tokens.len() - 1));
            let known = s.tokens().len();
            s.push(&prompt.tokens[known..]);
            s.set_blend(blend);
            return s;
        }
        let s = continued(&self.session, blend, &prompt.tokens, trunked.map(|t| (t, 0)));
        // Where another module may answer the next turn, its branch begins from these.
        if self.skills.as_ref().is_some_and(|s| s.selector().chooses()) { s.keep_states() } else { s }
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
