//! `perplexity`: how well a text is predicted.

use super::{print, task_of};
use crate::blend::Blend;
use crate::cli::PerplexityArgs;
use crate::error::{Code, Error, Result};
use crate::perplexity::perplexity;
use serde_json::json;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

pub(super) fn run(a: &PerplexityArgs, stop: &AtomicBool) -> Result<()> {
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
    let result = perplexity(&engine, &tokens, context, &blend, &mut |p| {
        let _ = write!(std::io::stderr(), "\r[{}] {:.4} ", p.chunks, p.value);
        p.chunks < most && !stop.load(Ordering::Relaxed)
    });
    let _ = writeln!(std::io::stderr());
    let p = result.map_err(|e| e.in_file(&a.file))?;
    engine.check(skills.as_ref())?;
    if a.json {
        let value = json!({
            "perplexity": p.value, "error": p.error, "tokens": p.tokens, "chunks": p.chunks, "n_ctx": context,
        });
        return print(&value.to_string());
    }
    print(&format!(
        "perplexity {:.4} ± {:.4} ({} tokens, {} chunks of {context})",
        p.value, p.error, p.tokens, p.chunks
    ))
}
