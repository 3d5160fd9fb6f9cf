//! Byte-level byte pair encoding, as GPT-2 and most decoders of today have it.

use super::vocabulary::Vocabulary;
use super::{Files, pre, special};
use crate::convert::plan::Plan;
use conpet_formats::{Code, Result};
use serde_json::Value;
use std::path::Path;

/// Writes a byte-level tokenizer; `usual` are the names of pre-tokenizers that the family's files use.
pub(in crate::convert) fn byte_pairs(plan: &mut Plan<'_>, folder: &Path, usual: &'static [&'static str]) -> Result<()> {
    let files = Files::open(folder)?;
    if files.at(&["model", "type"]).and_then(Value::as_str) != Some("BPE") {
        return Err(files.wrong(Code::Unsupported, "the tokenizer is not of type BPE, which this family has"));
    }
    // Composed letters change nothing of a text that is composed already, and llama.cpp has no step for it.
    if let Some(other) = files.at(&["normalizer"]).filter(|n| n.get("type").and_then(Value::as_str) != Some("NFC")) {
        return Err(files.wrong(Code::Unsupported, format!("the normalizer {other} is not one that is known")));
    }
    let vocabulary = Vocabulary::read(&files, plan.config.num("vocab_size")?)?;
    plan.keys
        .str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", pre::name(&files, usual)?)
        .strings("tokenizer.ggml.tokens", &vocabulary.tokens)
        .i32s("tokenizer.ggml.token_type", &vocabulary.kinds)
        .strings("tokenizer.ggml.merges", &merges(&files)?);
    special::write(plan, &files, &vocabulary.tokens)
}

/// The merges, best first, each as two texts with a space between; a space within a text is spelled U+0120.
fn merges(files: &Files) -> Result<Vec<String>> {
    let all = files.at(&["model", "merges"]).and_then(Value::as_array);
    let all = all.filter(|m| !m.is_empty()).ok_or_else(|| files.wrong(Code::Missing, "model.merges is missing"))?;
    let text = |v: &Value| match v {
        Value::String(s) => Some(s.clone()),
        Value::Array(two) => match (two.len(), two.first()?.as_str()?, two.last()?.as_str()?) {
            (2, a, b) => Some(format!("{} {}", a.replace(' ', "\u{120}"), b.replace(' ', "\u{120}"))),
            _ => None,
        },
        _ => None,
    };
    let wrong = |v: &Value| files.wrong(Code::Type, format!("{v} is no merge"));
    all.iter().map(|v| text(v).ok_or_else(|| wrong(v))).collect()
}
