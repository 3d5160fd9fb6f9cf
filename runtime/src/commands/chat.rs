//! `chat`: turns on standard input, answers on standard output.

use super::task_of;
use crate::chat::Message;
use crate::cli::ChatArgs;
use crate::engine::text::{Dialogue, Request};
use crate::error::{Code, Error, Result};
use std::io::{BufRead, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) fn run(a: &ChatArgs, stop: &AtomicBool) -> Result<()> {
    let sampler = a.sampling.config()?;
    let (engine, skills) = a.common.open()?;
    let task = task_of(skills.as_ref(), a.task.as_ref())?;
    let template = engine.base.chat_template()?.ok_or_else(|| {
        Error::new(Code::Missing, "this base has no chat template").in_file(&a.common.model).hint("use generate")
    })?;
    let mut messages: Vec<Message> =
        a.system.iter().map(|s| Message { role: "system".into(), content: s.clone() }).collect();
    let mut dialogue = Dialogue::new(&engine, skills.as_ref());
    let mut out = std::io::stdout();
    let prompt = |text: &str| {
        if std::io::stdin().is_terminal() {
            let _ = write!(std::io::stderr(), "{text}");
        }
    };
    prompt("> ");
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|e| Error::io("read standard input", e))?;
        if stop.load(Ordering::Relaxed) {
            break;
        }
        if line.trim().is_empty() {
            prompt("> ");
            continue;
        }
        messages.push(Message { role: "user".into(), content: line.clone() });
        let (text, words) = template.render(&messages, true)?;
        let request = Request {
            text,
            words: Some(words),
            select_on: Some(line),
            raw: true,
            choice: task.into(),
            max_tokens: Some(a.predict),
            sampler: sampler.clone(),
        };
        let g = dialogue.answer(&request, &mut |piece| {
            let _ = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            !stop.load(Ordering::Relaxed)
        })?;
        let _ = writeln!(out);
        if let (Some(t), Some(skills)) = (g.task, &skills) {
            let _ = writeln!(std::io::stderr(), "[{}]", skills.manifest().tasks[t].name);
        }
        messages.push(Message { role: "assistant".into(), content: g.text });
        prompt("> ");
    }
    Ok(())
}
