//! ModernBERT: rotary positions, norms before, gated feed-forward layers, a window in two layers of three.

use super::plan::{Change, Plan};
use super::{Family, bert, tokenizer};
use conpet_formats::model_spec::{EMBEDDING, OUTPUT_NORM};
use conpet_formats::{Code, Result};
use serde_json::json;
use std::path::Path;

pub(super) const FAMILY: Family =
    Family { arch: "modern-bert", classes: &["ModernBertModel", "ModernBertForMaskedLM"], plan, tokenizer };

fn tokenizer(p: &mut Plan<'_>, folder: &Path) -> Result<()> {
    bert::pooling(p, folder)?;
    tokenizer::byte_pairs(p, folder, &["modern-bert"])
}

fn plan(p: &mut Plan<'_>) -> Result<()> {
    let c = p.config;
    for key in ["attention_bias", "mlp_bias", "norm_bias"] {
        c.only(key, &[json!(false)])?;
    }
    c.only("position_embedding_type", &[json!("absolute"), json!("rope")])?;
    c.only("rope_scaling", &[])?;
    // How a classifier on top would pool, and how the head that predicts tokens computes.
    for key in ["classifier_pooling", "causal_mask", "tie_word_embeddings"] {
        c.get(key);
    }
    let (h, f, n) = (c.num("hidden_size")?, c.num("intermediate_size")?, c.num("num_hidden_layers")?);
    let (vocab, heads) = (c.num("vocab_size")?, c.num("num_attention_heads")?);
    p.u32("block_count", n);
    p.u32("context_length", c.num("max_position_embeddings")?);
    p.u32("embedding_length", h);
    p.u32("feed_forward_length", f);
    p.u32("attention.head_count", heads);
    p.f32("rope.freq_base", c.float("global_rope_theta")?.unwrap_or(160_000.0));
    p.f32("rope.freq_base_swa", c.float("local_rope_theta")?.unwrap_or(10_000.0));
    let eps = c.float("norm_eps")?.unwrap_or(1e-5);
    if c.float("layer_norm_eps")?.is_some_and(|e| e != eps) {
        return Err(c.wrong(Code::Unsupported, "layer_norm_eps", "is not norm_eps"));
    }
    p.f32("attention.layer_norm_epsilon", eps);
    p.bool("attention.causal", false);
    p.u32("attention.sliding_window", c.opt("local_attention")?.unwrap_or(128));
    p.u32("attention.sliding_window_pattern", c.opt("global_attn_every_n_layers")?.unwrap_or(3));
    p.str("rope.scaling.type", "none");
    p.u32("vocab_size", vocab);
    c.only("hidden_activation", &[json!("gelu"), json!("silu")])?;
    let activation = c.text("hidden_activation")?.unwrap_or("gelu");
    p.str("hidden_activation", activation);
    p.find_prefix(&["model.", ""], "embeddings.tok_embeddings.weight")?;
    p.same(EMBEDDING, "embeddings.tok_embeddings.weight", &[vocab, h])?;
    p.same("token_embd_norm.weight", "embeddings.norm.weight", &[h])?;
    for l in 0..n {
        let (to, from) =
            (|name: &str| format!("blk.{l}.{name}.weight"), |name: &str| format!("layers.{l}.{name}.weight"));
        // The embeddings are normalised already.
        if l > 0 {
            p.same(to("attn_norm"), &from("attn_norm"), &[h])?;
        }
        p.same(to("attn_qkv"), &from("attn.Wqkv"), &[3 * h, h])?;
        p.same(to("attn_output"), &from("attn.Wo"), &[h, h])?;
        p.same(to("ffn_norm"), &from("mlp_norm"), &[h])?;
        p.tensor(to("ffn_up"), &from("mlp.Wi"), &[2 * f, h], Change::None)?;
        p.same(to("ffn_down"), &from("mlp.Wo"), &[h, f])?;
    }
    p.same(format!("{OUTPUT_NORM}.weight"), "final_norm.weight", &[h])?;
    let heads: Vec<String> =
        p.weights.names().filter(|n| n.starts_with("head.") || n.starts_with("decoder.")).map(String::from).collect();
    heads.iter().for_each(|n| p.pass_over(n));
    Ok(())
}
