//! OLMo 2: norms behind attention and the feed-forward layer, and over all queries and all keys.

use super::decoder::{Layers, Sizes, activation, tensors};
use super::plan::Plan;
use super::rope::Rope;
use super::{Family, tokenizer};
use conpet_formats::Result;
use std::path::Path;

pub(super) const FAMILY: Family = Family { arch: "olmo2", classes: &["Olmo2ForCausalLM"], plan, tokenizer };

const BEHIND: &[(&str, &str)] =
    &[("post_attention_norm", "post_attention_layernorm"), ("post_ffw_norm", "post_feedforward_layernorm")];

fn tokenizer(p: &mut Plan<'_>, folder: &Path) -> Result<()> {
    tokenizer::byte_pairs(p, folder, &["dbrx"])
}

fn plan(p: &mut Plan<'_>) -> Result<()> {
    let s = Sizes::read(p, None)?;
    activation(p, &["silu"])?;
    // Limits on queries, keys and values, which OLMo 1 has.
    p.config.only("clip_qkv", &[])?;
    s.write(p)?;
    let rope = Rope::read(p, 10_000.0)?;
    rope.only(p, &["linear", "yarn"])?;
    rope.write(p)?;
    let bias = p.config.flag("attention_bias", false)?;
    let qk_norm = Some((s.heads * s.head_dim, s.kv_heads * s.head_dim));
    tensors(p, &s, &Layers { qkv_bias: bias, output_bias: bias, qk_norm, norms: BEHIND, ..Layers::default() })
}
