//! Writes the logits of a list of tokens, for comparison with other programs (`tests/peers/exchange.py`):
//! `logits -m BASE [-b BUNDLE --task NAME] [--exact] TOKEN..`, as little-endian f32 `[tokens, vocab]` to
//! standard output.

use anyhow::Context;
use clap::Parser;
use conpet_runtime::cli::Common;
use conpet_runtime::features::Prompt;
use conpet_runtime::forward::Scratch;
use std::io::Write;

#[derive(Parser)]
struct Args {
    #[command(flatten)]
    common: Common,
    /// Put this task's module in force.
    #[arg(long)]
    task: Option<String>,
    /// Numbers of tokens, taken as they are.
    #[arg(required = true)]
    tokens: Vec<u32>,
}

fn main() -> anyhow::Result<()> {
    let a = Args::parse();
    let (engine, skills) = a.common.open()?;
    let module = match (&skills, &a.task) {
        (Some(s), Some(name)) => {
            let index = s.manifest().tasks[s.task(name)?].module.context("the task has no module")?;
            Some(s.module(index as usize, &engine.base)?)
        }
        _ => None,
    };
    let vocab = engine.base.spec.vocab;
    anyhow::ensure!(a.tokens.iter().all(|t| (*t as usize) < vocab), "a token is not below {vocab}");
    let prompt = Prompt { text: String::new(), offsets: vec![0..0; a.tokens.len()], tokens: a.tokens };
    let logits = engine.logits(&prompt, module, &mut Scratch::default());
    let bytes: Vec<u8> = logits.iter().flat_map(|v| v.to_le_bytes()).collect();
    std::io::stdout().write_all(&bytes)?;
    Ok(())
}
