//! `generate`: texts to text.

use super::{inputs, print, task_of};
use crate::cli::GenerateArgs;
use crate::engine::text::Request;
use crate::error::Result;
use crate::memory::Memory;
use serde_json::json;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) fn run(a: &GenerateArgs, stop: &AtomicBool) -> Result<()> {
    let sampler = a.sampling.config()?;
    let (engine, skills) = a.input.common.open()?;
    let task = task_of(skills.as_ref(), a.input.task.as_ref())?;
    let mut input = a.input.clone();
    input.texts.extend(a.prompt.clone());
    inputs(&input, |texts| {
        for text in texts {
            if stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            let request = Request {
                text: text.clone(),
                choice: task.into(),
                raw: a.raw,
                max_tokens: a.predict,
                sampler: sampler.clone(),
                ..Request::default()
            };
            let mut out = std::io::stdout();
            let g = engine.generate(skills.as_ref(), &request, &mut |piece| {
                if !a.input.json {
                    let _ = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
                }
                !stop.load(Ordering::Relaxed)
            })?;
            let name = g.task.and_then(|t| skills.as_ref().map(|s| s.manifest().tasks[t].name.clone()));
            let rate = |n: usize, t: std::time::Duration| n as f64 / t.as_secs_f64().max(1e-9);
            if a.input.json {
                print(
                    &json!({
                        "prompt": text,
                        "text": g.text,
                        "task": name,
                        "abstain": g.decision.as_ref().is_some_and(|d| d.abstain),
                        "margin": g.decision.as_ref().map(|d| d.margin),
                        "timings": {
                            "prompt_n": g.prompt_tokens,
                            "prompt_ms": g.prompt_time.as_secs_f64() * 1e3,
                            "predicted_n": g.tokens.len(),
                            "predicted_ms": g.answer_time.as_secs_f64() * 1e3,
                            "predicted_per_second": rate(g.tokens.len(), g.answer_time),
                        },
                    })
                    .to_string(),
                )?;
            } else {
                print("")?;
                let m = Memory::now();
                let _ = writeln!(
                    std::io::stderr(),
                    "[{}; prompt {} tokens in {:.0} ms; answer {} tokens, {:.1}/s; {:.0} MB private, {:.0} MB mapped]",
                    name.as_deref().unwrap_or("bare base"),
                    g.prompt_tokens,
                    g.prompt_time.as_secs_f64() * 1e3,
                    g.tokens.len(),
                    rate(g.tokens.len(), g.answer_time),
                    m.anonymous as f64 / 1e6,
                    m.file as f64 / 1e6
                );
            }
        }
        Ok(())
    })
}
