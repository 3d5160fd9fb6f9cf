//! BERT: MiniLM, BGE and others. Layers with the norm behind them, learned positions, biases everywhere.

use super::plan::{Change, Plan};
use super::{Family, tokenizer};
use crate::convert::config::json;
use conpet_formats::{Code, Error, Result};
use serde_json::{Value, json};
use std::path::Path;

pub(super) const FAMILY: Family = Family { arch: "bert", classes: &["BertModel", "BertForMaskedLM"], plan, tokenizer };

fn tokenizer(plan: &mut Plan<'_>, folder: &Path) -> Result<()> {
    pooling(plan, folder)?;
    tokenizer::word_pieces(plan, folder)
}

fn plan(p: &mut Plan<'_>) -> Result<()> {
    p.find_prefix(&["", "bert."], "embeddings.word_embeddings.weight")?;
    p.config.only("position_embedding_type", &[json!("absolute")])?;
    layers(p, 0)?;
    p.pass_over_if(|n| n == "embeddings.position_ids" || n.starts_with("pooler.") || n.starts_with("cls."));
    Ok(())
}

/// What a BERT has; the first `offset` positions are never used.
pub(super) fn layers(p: &mut Plan<'_>, offset: usize) -> Result<()> {
    let c = p.config;
    c.only("hidden_act", &[json!("gelu")])?;
    for key in ["is_decoder", "add_cross_attention", "tie_encoder_decoder"] {
        c.only(key, &[json!(false)])?;
    }
    // A head on top, which is not converted, may share the table.
    c.flag("tie_word_embeddings", true)?;
    let (h, f, n) = (c.num("hidden_size")?, c.num("intermediate_size")?, c.num("num_hidden_layers")?);
    let (vocab, positions) = (c.num("vocab_size")?, c.num("max_position_embeddings")?);
    p.u32("block_count", n);
    p.u32("context_length", positions.saturating_sub(offset));
    p.u32("embedding_length", h);
    p.u32("feed_forward_length", f);
    p.u32("attention.head_count", c.num("num_attention_heads")?);
    p.f32("attention.layer_norm_epsilon", c.float("layer_norm_eps")?.unwrap_or(1e-12));
    p.bool("attention.causal", false);
    p.same("token_embd.weight", "embeddings.word_embeddings.weight", &[vocab, h])?;
    let change = if offset == 0 { Change::None } else { Change::Skip(offset) };
    p.tensor("position_embd.weight", "embeddings.position_embeddings.weight", &[positions, h], change)?;
    let kinds = c.opt("type_vocab_size")?.unwrap_or(2);
    p.same("token_types.weight", "embeddings.token_type_embeddings.weight", &[kinds, h])?;
    norm(p, "token_embd_norm", "embeddings.LayerNorm", h)?;
    for l in 0..n {
        let (to, from) = (|name: &str| format!("blk.{l}.{name}"), |name: &str| format!("encoder.layer.{l}.{name}"));
        for (name, own, out, input) in [
            ("attn_q", "attention.self.query", h, h),
            ("attn_k", "attention.self.key", h, h),
            ("attn_v", "attention.self.value", h, h),
            ("attn_output", "attention.output.dense", h, h),
            ("ffn_up", "intermediate.dense", f, h),
            ("ffn_down", "output.dense", h, f),
        ] {
            p.same(to(name) + ".weight", &from(&format!("{own}.weight")), &[out, input])?;
            p.same(to(name) + ".bias", &from(&format!("{own}.bias")), &[out])?;
        }
        norm(p, &to("attn_output_norm"), &from("attention.output.LayerNorm"), h)?;
        norm(p, &to("layer_output_norm"), &from("output.LayerNorm"), h)?;
    }
    Ok(())
}

/// A LayerNorm; old checkpoints call its parts gamma and beta.
fn norm(p: &mut Plan<'_>, name: &str, from: &str, width: usize) -> Result<()> {
    for (part, old) in [("weight", "gamma"), ("bias", "beta")] {
        let own = if p.weights.has(&format!("{}{from}.{old}", p.prefix)) { old } else { part };
        p.same(format!("{name}.{part}"), &format!("{from}.{own}"), &[width])?;
    }
    Ok(())
}

/// How states become an embedding, as sentence-transformers describes it in `modules.json`; nothing if it does not.
pub(super) fn pooling(p: &mut Plan<'_>, folder: &Path) -> Result<()> {
    let modules = json(&folder.join("modules.json"))?;
    let pools = |m: &&Value| m.get("type").and_then(Value::as_str).is_some_and(|t| t.ends_with("Pooling"));
    let module = modules.as_ref().and_then(|m| m.as_array()?.iter().find(pools)?.get("path")?.as_str());
    let Some(path) = module.map(|m| folder.join(m).join("config.json")) else { return Ok(()) };
    let settings = json(&path)?.ok_or_else(|| {
        Error::new(Code::Missing, "the file is missing, but modules.json names its folder")
            .in_file(&path)
            .hint("download it too: it says how states become an embedding")
    })?;
    let on = |key: &str| settings.get(key).and_then(Value::as_bool) == Some(true);
    let mode = settings.get("pooling_mode").and_then(Value::as_str);
    let kinds = [("mean", "mean_tokens", 1), ("cls", "cls_token", 2), ("lasttoken", "lasttoken", 3)];
    let chosen = |(word, key, _): &&(&str, &str, usize)| on(&format!("pooling_mode_{key}")) || mode == Some(word);
    let other = ["max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens"];
    match (kinds.iter().find(chosen), other.iter().find(|k| on(&format!("pooling_mode_{k}")))) {
        (Some((_, _, id)), None) => {
            p.u32("pooling_type", *id);
            Ok(())
        }
        (_, bad) => Err(Error::new(
            Code::Unsupported,
            format!("pooling by {} is not supported", bad.unwrap_or(&"no known mode")),
        )
        .in_file(&path)
        .hint("mean, cls and lasttoken are")),
    }
}
