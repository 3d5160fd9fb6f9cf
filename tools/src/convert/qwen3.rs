//! Qwen 3: as Qwen 2, with norms of queries and keys in place of biases.

use super::decoder::{Layers, Sizes, tensors};
use super::plan::Plan;
use super::{Family, qwen2};
use conpet_formats::Result;

pub(super) const FAMILY: Family =
    Family { arch: "qwen3", classes: &["Qwen3ForCausalLM", "Qwen3Model"], plan, tokenizer: qwen2::tokenizer };

fn plan(p: &mut Plan<'_>) -> Result<()> {
    let s = Sizes::read(p, Some(128))?;
    qwen2::keys(p, &s)?;
    s.write_head(p);
    let bias = p.config.flag("attention_bias", false)?;
    let qk_norm = Some((s.head_dim, s.head_dim));
    tensors(p, &s, &Layers { qkv_bias: bias, output_bias: bias, qk_norm, ..Layers::default() })
}
