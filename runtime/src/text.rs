//! Text generation, token by token, and conversations that compute only new tokens.

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

/// Most tokens of an answer if neither the request nor the task sets a limit.
const MOST_TOKENS: usize = 128;

/// How to choose what is in force for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Choice {
    /// The selector chooses; the bare base answers if it refuses the input.
    #[default]
    Selected,
    /// A task by its index in the manifest.
    Task(usize),
    /// The bare base.
    Bare,
}

impl From<Option<usize>> for Choice {
    /// The task that was named, or what the selector chooses.
    fn from(task: Option<usize>) -> Self {
        task.map_or(Self::Selected, Self::Task)
    }
}

/// A request to generate an answer.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The user's text.
    pub text: String,
    /// The text that the selector reads, if not the whole text (in a chat, the last turn).
    pub select_on: Option<String>,
    /// Byte ranges of `text` that are the speakers' words, if it came out of a chat template: control tokens
    /// are read everywhere else. `None`: all of it is the user's.
    pub words: Option<Vec<Range<usize>>>,
    /// Put no task template around the text.
    pub raw: bool,
    /// How to choose what is in force.
    pub choice: Choice,
    /// Most tokens to generate; `None` takes the task's own limit, or 128.
    pub max_tokens: Option<usize>,
    /// How tokens are sampled.
    pub sampler: SamplerConfig,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// The model generated an end token.
    Stop,
    /// It reached the limit of the request, of the task, or of the context.
    Length,
    /// The receiver (`emit`) stopped it.
    Interrupted,
}

impl Finish {
    /// The name that other servers use in `finish_reason`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Interrupted => "interrupted",
        }
    }
}

/// A generated answer.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Generated {
    /// The answer's tokens, without the one that ended it.
    pub tokens: Vec<u32>,
    /// The answer.
    pub text: String,
    /// Why the answer ended.
    pub finish: Finish,
    /// The task whose module was in force; `None` is the bare base.
    pub task: Option<usize>,
    /// The selector's decision, if it was asked.
    pub decision: Option<Decision>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Time to the first token.
    pub prompt_time: Duration,
    /// Time for the remaining tokens.
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

/// The task that answers, and the results computed in choosing it.
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
        self.check_predicts("text")?;
        let begin = Instant::now();
        let routed = self.route(skills, request)?;
        Dialogue::new(self, skills)?.write(routed, request, begin, emit)
    }

    /// Generates the answer to an input that has passed the trunk and whose [`crate::answer::Answer`] has no label.
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
        Dialogue::new(self, Some(skills))?.write(routed, request, Instant::now(), emit)
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
        let d = decision.ok_or_else(|| Error::new(Code::Value, "the selector gave no decision for this input"))?;
        let task = (!d.abstain).then(|| d.order[0]);
        Ok(Routed { task, decision: Some(d), trunked: Some(trunked) })
    }
}

impl Dialogue {
    /// A new conversation, without turns.
    ///
    /// # Errors
    /// If the base is an encoder, which cannot write.
    pub fn new(engine: &Engine, skills: Option<&Skills>) -> Result<Self> {
        engine.check_predicts("text")?;
        let session = Session::new(engine, skills.map_or(0, Skills::trunk));
        Ok(Self { engine: engine.clone(), skills: skills.cloned(), session, sequence: None })
    }

    /// Generates an answer as [`Engine::generate`] does, but computes only the tokens after the longest prefix
    /// that the request shares with the conversation so far. If another module answers, the branch runs again
    /// over the whole text.
    ///
    /// # Errors
    /// See [`Engine::generate`].
    pub fn answer(&mut self, request: &Request, emit: &mut dyn FnMut(&str) -> bool) -> Result<Generated> {
        let begin = Instant::now();
        let routed = self.engine.route(self.skills.as_ref(), request)?;
        self.write(routed, request, begin, emit)
    }

    /// Bytes held by its caches.
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
                (engine.opening(&Engine::in_words_of(task, &request.text)?, None)?, skills.blend(task)?)
            }
            (Some(skills), Some(task)) => {
                (engine.opening(&request.text, request.words.as_deref())?, skills.blend(task)?)
            }
            _ => (engine.opening(&request.text, request.words.as_deref())?, Blend::none()),
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
            // A character may span several tokens: hold back incomplete bytes.
            let whole = whole_chars(&pending);
            if whole > 0 {
                let piece = String::from_utf8_lossy(&pending[..whole]).into_owned();
                pending.drain(..whole);
                out.text.push_str(&piece);
                // Checked only now because the token's text, too, is read from the base.
                engine.check(skills.as_ref())?;
                if !emit(&piece) {
                    out.finish = Finish::Interrupted;
                    break;
                }
            }
        }
        engine.check(skills.as_ref())?;
        if !pending.is_empty() && out.finish != Finish::Interrupted {
            let piece = String::from_utf8_lossy(&pending).into_owned();
            out.text.push_str(&piece);
            emit(&piece);
        }
        self.sequence = Some(sequence);
        out.answer_time = begin.elapsed();
        Ok(out)
    }

    /// The sequence that holds the prompt, with everything reused that this conversation or the input's trunk
    /// pass has already computed.
    fn begin(&mut self, prompt: &Prompt, blend: Blend, trunked: Option<&Trunked>) -> Sequence {
        let of_input = trunked.map_or(0, |t| shared(&t.prompts[0].tokens, &prompt.tokens));
        if let Some(mut s) = self.sequence.take().filter(|s| shared(s.tokens(), &prompt.tokens) >= of_input) {
            // At least the last token must be run, to get its logits.
            s.truncate(shared(s.tokens(), &prompt.tokens).min(prompt.tokens.len() - 1));
            let known = s.tokens().len();
            s.push(&prompt.tokens[known..]);
            s.set_blend(blend);
            return s;
        }
        let s = continued(&self.session, blend, &prompt.tokens, trunked.map(|t| (t, 0)));
        // If another module may answer the next turn, its branch will begin from these states.
        if self.skills.as_ref().is_some_and(|s| s.selector().chooses()) { s.keep_states() } else { s }
    }
}

/// Length of the longest prefix that does not end within a character.
fn whole_chars(bytes: &[u8]) -> usize {
    match std::str::from_utf8(bytes) {
        Ok(_) => bytes.len(),
        // Incomplete bytes at the end must wait; invalid ones in the middle will never become valid.
        Err(e) if e.error_len().is_none() => e.valid_up_to(),
        Err(_) => bytes.len(),
    }
}
