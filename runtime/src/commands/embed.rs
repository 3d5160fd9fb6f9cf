//! `embed`: turns texts into vectors.

use crate::cli::{InputArgs, Inputs};
use crate::error::{Code, Error, Result};
use clap::Args;
use conpet_formats::feature::Pool;
use conpet_program::print::print;
use conpet_program::{ExitStatus, Stop};
use serde_json::json;

/// Most inputs computed together; they share each read of the weights.
const TOGETHER: usize = 64;

/// Arguments of `embed`.
#[derive(Debug, Clone, Args)]
pub(super) struct EmbedArgs {
    #[command(flatten)]
    input: InputArgs,
    /// How a text's states become one: mean, first (the token that begins a text, as BERT's [CLS]), last, max or
    /// min. As the base's file says by default, else mean.
    #[arg(long)]
    pooling: Option<String>,
}

pub(super) fn run(a: &EmbedArgs, stop: &Stop) -> Result<ExitStatus> {
    if a.input.task.is_some() || a.input.common.bundle.is_some() {
        return Err(Error::new(Code::Unsupported, "embed runs the base alone, without a bundle or a task")
            .hint("leave out --bundle and --task; classify and route use them"));
    }
    let (engine, _) = a.input.common.open()?;
    let pool = match a.pooling.as_deref() {
        None => engine.pooling(),
        // llama.cpp's name for it.
        Some("cls") => Pool::First,
        Some(name) => Pool::parse(name)?,
    };
    Inputs::open(&a.input)?.answer(stop, TOGETHER, |inputs, tally| {
        let texts: Vec<&str> = inputs.iter().map(|i| i.text.as_str()).collect();
        let together = engine.embeddings(&texts, &pool).map(|all| all.into_iter().map(Ok).collect());
        let all: Vec<Result<Vec<f32>>> = match together {
            Ok(all) => all,
            Err(e) if texts.len() == 1 || e.file().is_some() => vec![Err(e)],
            // One input's error must not cost the others their vectors, so each is tried alone.
            Err(_) => texts.iter().map(|t| Ok(engine.embeddings(&[t], &pool)?.remove(0))).collect(),
        };
        for (input, vector) in inputs.iter().zip(all) {
            if stop.asked() {
                break;
            }
            let printed = vector.and_then(|v| {
                print(&if a.input.json {
                    json!({ "text": input.text, "embedding": v }).to_string()
                } else {
                    v.iter().map(f32::to_string).collect::<Vec<_>>().join(" ")
                })
            });
            tally.settle(input, printed)?;
        }
        Ok(())
    })
}
