//! `perplexity`: measures how well a text is predicted.

use crate::blend::Blend;
use crate::cli::{Common, count_or_all, task_of};
use crate::error::{Code, Error, Result};
use crate::perplexity::perplexity;
use clap::Args;
use conpet_program::print::{print, say, say_piece};
use conpet_program::{ExitStatus, Stop};
use serde_json::json;
use std::path::PathBuf;

/// Arguments of `perplexity`.
#[derive(Debug, Clone, Args)]
pub(crate) struct PerplexityArgs {
    /// Base, bundle and resources. A chunk is 512 tokens unless --ctx-size says otherwise.
    #[command(flatten)]
    common: Common,
    /// The file with the text.
    #[arg(short = 'f', long)]
    file: PathBuf,
    /// Most chunks to measure; -1 or 0 measures all.
    #[arg(long, default_value = "-1", allow_negative_numbers = true, value_parser = count_or_all)]
    chunks: usize,
    /// Put this task's module in force.
    #[arg(long)]
    task: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(a: &PerplexityArgs, stop: &Stop) -> Result<ExitStatus> {
    let (engine, skills) = a.common.open()?;
    let text = conpet_formats::fs::read_text(&a.file)?;
    let blend = match skills.as_ref().zip(task_of(skills.as_ref(), a.task.as_ref())?) {
        Some((s, t)) => {
            let task = &s.manifest().tasks[t];
            let m = task.module.ok_or_else(|| {
                Error::new(Code::Missing, format!("task {} has no module", task.name)).hint("leave --task out")
            })?;
            Blend::from(s.module(m as usize)?)
        }
        None => Blend::none(),
    };
    let mut tokens = engine.base.tokenizer.encode(&text, false).map_err(|e| e.in_file(&a.file))?;
    if let Some(bos) = engine.base.tokenizer.bos() {
        tokens.insert(0, bos);
    }
    let context = if a.common.ctx_size == 0 { engine.context().min(512) } else { a.common.ctx_size };
    let most = if a.chunks == 0 { usize::MAX } else { a.chunks };
    let _work = stop.at_work();
    let result = perplexity(&engine, &tokens, context, &blend, &mut |p| {
        say_piece(&format!("\r[{}] {:.4} ", p.chunks, p.value));
        p.chunks < most && !stop.asked()
    });
    say("");
    let p = result.map_err(|e| e.in_file(&a.file))?;
    engine.check(skills.as_ref())?;
    print(&if a.json {
        json!({ "perplexity": p.value, "error": p.error, "tokens": p.tokens, "chunks": p.chunks, "n_ctx": context })
            .to_string()
    } else {
        format!("perplexity {:.4} ± {:.4} ({} tokens, {} chunks of {context})", p.value, p.error, p.tokens, p.chunks)
    })?;
    Ok(if stop.asked() { ExitStatus::Stopped } else { ExitStatus::Success })
}
