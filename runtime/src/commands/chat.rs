//! `chat`: turns on standard input, answers on standard output.

use crate::chat::{ChatTemplate, Message};
use crate::cli::{Common, Sampling, count_or_all, say_if_cut, task_or_choice};
use crate::engine::Engine;
use crate::error::{Code, Error, Result};
use crate::sampler::SamplerConfig;
use crate::text::{Dialogue, Request};
use clap::Args;
use conpet_program::print::{Pieces, complain, print, say, say_piece};
use conpet_program::queue::Queue;
use conpet_program::{ExitStatus, Stop};
use std::io::IsTerminal;
use std::ops::Range;

/// Arguments of `chat`.
#[derive(Debug, Clone, Args)]
pub(crate) struct ChatArgs {
    /// Base, bundle and resources.
    #[command(flatten)]
    common: Common,
    /// System message: what the assistant is told first.
    #[arg(long = "system-prompt")]
    system: Option<String>,
    /// Use this task instead of choosing one for each turn.
    #[arg(long)]
    task: Option<String>,
    /// Most tokens of an answer; -1 continues until the answer ends or the context is full.
    #[arg(short = 'n', long = "predict", default_value = "256", env = "LLAMA_ARG_N_PREDICT", allow_negative_numbers = true, value_parser = count_or_all)]
    predict: usize,
    /// Sampling.
    #[command(flatten)]
    sampling: Sampling,
}

pub(super) fn run(a: &ChatArgs, stop: &Stop) -> Result<ExitStatus> {
    let sampler = a.sampling.config()?;
    let (engine, skills) = a.common.open()?;
    let task = task_or_choice(skills.as_ref(), a.task.as_ref())?;
    engine.check_predicts("chat")?;
    let template = engine.base.chat_template()?.ok_or_else(|| {
        Error::new(Code::Missing, "this base has no chat template")
            .in_file(engine.base.path())
            .hint("use conpet-run generate, or a base that has one")
    })?;
    let mut talk = Conversation::new(template, a.system.clone());
    let mut dialogue = Dialogue::new(&engine, skills.as_ref())?;
    // Room that is kept for an answer: a conversation that leaves less forgets its oldest turns.
    let room = a.predict.min(engine.context() / 4);
    let turns = Queue::open(None)?;
    let mut status = ExitStatus::Success;
    for turn in 0.. {
        if std::io::stdin().is_terminal() {
            say_piece("> ");
        }
        let Some(line) = turns.wait() else { break };
        let _work = stop.at_work();
        let answered = line.and_then(|line| {
            let (text, words) = talk.ask(&engine, &line.text, room).map_err(|e| line.place.blame(e))?;
            let request = Request {
                text,
                words: Some(words),
                select_on: Some(line.text),
                raw: true,
                choice: task.into(),
                max_tokens: Some(a.predict),
                // Each turn has a random stream of its own.
                sampler: SamplerConfig { stream: turn, ..sampler.clone() },
            };
            let mut out = Pieces::default();
            let emit = &mut |piece: &str| out.print(piece) && !stop.asked();
            let g = dialogue.answer(&request, emit).inspect_err(|_| talk.withdraw())?;
            out.finish()?;
            print("")?;
            if let (Some(t), Some(skills)) = (g.task, &skills) {
                say(&format!("[{}]", skills.manifest().tasks[t].name));
            }
            say_if_cut(&g, engine.context(), Some(a.predict));
            talk.answered(g.text);
            Ok(())
        });
        match answered {
            // The turn cannot be read, is too long by itself, or the template refuses it: the conversation
            // continues without it.
            Err(e) if matches!(e.code(), Code::Text | Code::Cap | Code::Value) => {
                complain(&e);
                status = ExitStatus::Damaged;
            }
            other => other?,
        }
        if stop.asked() {
            return Ok(ExitStatus::Stopped);
        }
    }
    Ok(status)
}

/// The conversation so far.
struct Conversation {
    template: ChatTemplate,
    /// The system message, which is never forgotten.
    system: Option<Message>,
    /// The turns of user and assistant, alternating.
    turns: Vec<Message>,
}

impl Conversation {
    fn new(template: ChatTemplate, system: Option<String>) -> Self {
        Self { template, system: system.map(|content| message("system", content)), turns: Vec::new() }
    }

    /// Adds the user's turn; returns the text of the conversation up to the assistant's turn, and the byte
    /// ranges of it that are the speakers' words. The oldest turns are forgotten until the context has `room`
    /// tokens for the answer.
    ///
    /// # Errors
    /// If the turn by itself is longer than the context, or the template refuses it; then it is not added and
    /// nothing is forgotten.
    fn ask(&mut self, engine: &Engine, text: &str, room: usize) -> Result<(String, Vec<Range<usize>>)> {
        self.turns.push(message("user", text.to_owned()));
        let asked = self.fit(engine, room);
        match &asked {
            Ok((forgotten, ..)) => {
                if *forgotten > 0 {
                    let context = engine.context();
                    say(&format!(
                        "notice: the conversation outgrew the context of {context} tokens; {forgotten} of its oldest turns are forgotten"
                    ));
                }
                self.turns.drain(..*forgotten);
            }
            Err(_) => self.withdraw(),
        }
        asked.map(|(_, text, words)| (text, words))
    }

    /// How many of the oldest turns must go, and the conversation without them.
    fn fit(&self, engine: &Engine, room: usize) -> Result<(usize, String, Vec<Range<usize>>)> {
        // A question is forgotten together with its answer; the newest turn stays.
        for forgotten in (0..self.turns.len()).step_by(2) {
            let messages: Vec<Message> = self.system.iter().chain(&self.turns[forgotten..]).cloned().collect();
            let (text, words) = self.template.render(&messages, true).map_err(|e| e.in_file(engine.base.path()))?;
            let last = forgotten + 1 == self.turns.len();
            match engine.opening(&text, Some(&words)).map(|p| p.tokens.len()) {
                Ok(n) if last || n + room <= engine.context() => return Ok((forgotten, text, words)),
                Err(e) if last || e.code() != Code::Cap => return Err(e),
                _ => {}
            }
        }
        unreachable!("turns alternate, and the user's is the last")
    }

    /// Takes the user's turn back: it got no answer.
    fn withdraw(&mut self) {
        self.turns.pop();
    }

    /// Adds the assistant's turn.
    fn answered(&mut self, text: String) {
        self.turns.push(message("assistant", text));
    }
}

fn message(role: &str, content: String) -> Message {
    Message { role: role.into(), content }
}
