//! RoBERTa: a BERT with byte-level byte pairs, whose positions begin behind the padding token.

use super::plan::Plan;
use super::{Family, bert, tokenizer};
use conpet_formats::Result;
use serde_json::json;
use std::path::Path;

pub(super) const FAMILY: Family =
    Family { arch: "bert", classes: &["RobertaModel", "RobertaForMaskedLM"], plan, tokenizer };

fn tokenizer(p: &mut Plan<'_>, folder: &Path) -> Result<()> {
    bert::pooling(p, folder)?;
    p.keys.u32("tokenizer.ggml.token_type_count", p.config.opt("type_vocab_size")?.unwrap_or(1) as u32);
    tokenizer::byte_pairs(p, folder, &["roberta-bpe"])
}

fn plan(p: &mut Plan<'_>) -> Result<()> {
    p.find_prefix(&["", "roberta."], "embeddings.word_embeddings.weight")?;
    p.config.only("position_embedding_type", &[json!("absolute")])?;
    let padding = p.config.opt("pad_token_id")?.unwrap_or(1);
    bert::layers(p, padding + 1)?;
    p.pass_over_if(|n| n == "embeddings.position_ids" || n.starts_with("pooler.") || n.starts_with("lm_head."));
    Ok(())
}
