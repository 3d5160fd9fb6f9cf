//! Writes the logits of a list of tokens, for comparison with other programs (`tests/peers/exchange.py`):
//! `logits -m BASE [-b BUNDLE --task NAME] [--exact] TOKEN..`, as little-endian f32 `[tokens, vocab]` to
//! standard output.

use anyhow::Context;
use clap::Parser;
use conpet_runtime::blend::Blend;
use conpet_runtime::cli::Common;
use conpet_runtime::prompt::Prompt;
use std::io::Write;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    common: Common,
    /// Put this task's module in force.
    #[arg(long)]
    task: Option<String>,
    /// Token ids, used as they are.
    #[arg(required = true)]
    tokens: Vec<u32>,
}

fn main() -> anyhow::Result<()> {
    let a = Args::parse();
    let (engine, skills) = a.common.open()?;
    let blend = match (&skills, &a.task) {
        (Some(s), Some(name)) => {
            let index = s.manifest().tasks[s.task(name)?].module.context("the task has no module")?;
            Blend::from(s.module(index as usize)?)
        }
        _ => Blend::none(),
    };
    let vocab = engine.base.spec.vocab;
    anyhow::ensure!(a.tokens.iter().all(|t| (*t as usize) < vocab), "a token is not below {vocab}");
    let prompt = Prompt { text: String::new(), offsets: vec![0..0; a.tokens.len()], tokens: a.tokens };
    let logits = engine.logits(&prompt, &blend);
    let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::io::stdout().write_all(&bytes)?;
    Ok(())
}
