//! `generate`: answers texts with text.

use crate::cli::{InputArgs, Inputs, Sampling, count_or_all, say_if_cut, task_or_choice};
use crate::error::Result;
use crate::memory::Memory;
use crate::sampler::SamplerConfig;
use crate::text::{Generated, Request};
use clap::Args;
use conpet_program::print::{Pieces, print, say};
use conpet_program::{ExitStatus, Stop};
use serde_json::{Value, json};
use std::time::Duration;

/// Arguments of `generate`.
#[derive(Debug, Clone, Args)]
pub(crate) struct GenerateArgs {
    /// The inputs.
    #[command(flatten)]
    input: InputArgs,
    /// The prompt (or give it as an argument, in a file, or on standard input).
    #[arg(short = 'p', long, conflicts_with = "file")]
    prompt: Option<String>,
    /// Most tokens to generate; -1 continues until the answer ends or the context is full. The default is the
    /// task's own limit.
    #[arg(short = 'n', long = "predict", env = "LLAMA_ARG_N_PREDICT", allow_negative_numbers = true, value_parser = count_or_all)]
    predict: Option<usize>,
    /// Sampling.
    #[command(flatten)]
    sampling: Sampling,
    /// Put no task template around the prompt.
    #[arg(long)]
    raw: bool,
}

pub(super) fn run(a: &GenerateArgs, stop: &Stop) -> Result<ExitStatus> {
    let sampler = a.sampling.config()?;
    let (engine, skills) = a.input.common.open()?;
    let task = task_or_choice(skills.as_ref(), a.input.task.as_ref())?;
    let name = |g: &Generated| Some(skills.as_ref()?.manifest().tasks[g.task?].name.as_str());
    let mut input = a.input.clone();
    input.texts.extend(a.prompt.clone());
    Inputs::open(&input)?.answer(stop, 1, |inputs, tally| {
        for input in inputs {
            let request = Request {
                text: input.text.clone(),
                choice: task.into(),
                raw: a.raw,
                max_tokens: a.predict,
                // Each input has a random stream of its own, even if the same prompt comes twice.
                sampler: SamplerConfig { stream: input.number, ..sampler.clone() },
                ..Request::default()
            };
            let mut out = Pieces::default();
            let emit = &mut |piece: &str| (a.input.json || out.print(piece)) && !stop.asked();
            let answered = engine.generate(skills.as_ref(), &request, emit);
            out.finish()?;
            let printed = answered.and_then(|g| {
                if a.input.json {
                    print(&json_line(&input.text, &g, name(&g)).to_string())?;
                } else {
                    print("")?;
                    say(&line(&g, name(&g)));
                }
                say_if_cut(&g, engine.context(), a.predict);
                Ok(())
            });
            tally.settle(input, printed)?;
        }
        Ok(())
    })
}

fn rate(n: usize, t: Duration) -> f64 {
    n as f64 / t.as_secs_f64().max(1e-9)
}

fn line(g: &Generated, task: Option<&str>) -> String {
    let m = Memory::now();
    format!(
        "[{}; prompt {} tokens in {:.0} ms; answer {} tokens, {:.1}/s; {:.0} MB private, {:.0} MB mapped]",
        task.unwrap_or("bare base"),
        g.prompt_tokens,
        g.prompt_time.as_secs_f64() * 1e3,
        g.tokens.len(),
        rate(g.tokens.len(), g.answer_time),
        m.anonymous as f64 / 1e6,
        m.file as f64 / 1e6
    )
}

fn json_line(prompt: &str, g: &Generated, task: Option<&str>) -> Value {
    json!({
        "prompt": prompt,
        "text": g.text,
        "finish_reason": g.finish.name(),
        "task": task,
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
}
