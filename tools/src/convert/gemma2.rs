//! Gemma 2: norms around attention and the feed-forward layer, soft caps, a window in every other layer.

use super::decoder::{Layers, Sizes, activation, layer_types, tensors};
use super::plan::Plan;
use super::rope::Rope;
use super::{Family, tokenizer};
use conpet_formats::{Code, Result};
use serde_json::json;
use std::path::Path;

pub(super) const FAMILY: Family = Family { arch: "gemma2", classes: &["Gemma2ForCausalLM"], plan, tokenizer };

/// Norms before and behind attention and the feed-forward layer.
pub(super) const AROUND: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// What of Gemma's tensors is not its own: nothing is put before a text.
pub(super) fn tokenizer(p: &mut Plan<'_>, folder: &Path) -> Result<()> {
    tokenizer::sentence_pieces(p, folder, Some(false))
}

fn plan(p: &mut Plan<'_>) -> Result<()> {
    let s = Sizes::read(p, Some(256))?;
    same(p, &s)?;
    layer_types(p, &s, &|l| l % 2 == 0)?;
    s.write(p)?;
    s.write_head(p);
    for (key, usual) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
        let cap = p.config.float(key)?.unwrap_or(usual);
        p.f32(key, cap);
    }
    p.u32("attention.sliding_window", p.config.opt("sliding_window")?.unwrap_or(4096));
    let rope = Rope::read(p, 10_000.0)?;
    rope.only(p, &[])?;
    if rope.theta != 10_000.0 {
        rope.write(p)?;
    }
    tensors(p, &s, &Layers { norms: AROUND, plus_one: true, ..Layers::default() })
}

/// Checks what Gemma 2 and 3 have alike.
pub(super) fn same(p: &Plan<'_>, s: &Sizes) -> Result<()> {
    let c = p.config;
    activation(p, &["gelu_pytorch_tanh"])?;
    c.only("attention_bias", &[json!(false)])?;
    c.only("use_bidirectional_attention", &[json!(false)])?;
    let scale = c.float("query_pre_attn_scalar")?.unwrap_or(256.0);
    if scale != s.head_dim as f64 {
        let what = format!("is {scale}, only the head's width, {}, is supported", s.head_dim);
        return Err(c.wrong(Code::Unsupported, "query_pre_attn_scalar", &what));
    }
    Ok(())
}
