//! Qwen 2 and 2.5: as llama, with biases of queries, keys and values, and RoPE over halves.

use super::decoder::{Layers, Sizes, activation, no_window, tensors};
use super::plan::Plan;
use super::rope::Rope;
use super::{Family, bert, tokenizer};
use conpet_formats::Result;
use std::path::Path;

pub(super) const FAMILY: Family =
    Family { arch: "qwen2", classes: &["Qwen2ForCausalLM", "Qwen2Model"], plan, tokenizer };

pub(super) fn tokenizer(p: &mut Plan<'_>, folder: &Path) -> Result<()> {
    bert::pooling(p, folder)?;
    tokenizer::byte_pairs(p, folder, &["qwen2"])
}

fn plan(p: &mut Plan<'_>) -> Result<()> {
    let s = Sizes::read(p, None)?;
    keys(p, &s)?;
    if p.config.opt("head_dim")?.is_some() {
        s.write_head(p);
    }
    tensors(p, &s, &Layers { qkv_bias: true, ..Layers::default() })
}

/// The keys that Qwen 2 and 3 have.
pub(super) fn keys(p: &mut Plan<'_>, s: &Sizes) -> Result<()> {
    activation(p, &["silu"])?;
    no_window(p, s)?;
    s.write(p)?;
    let rope = Rope::read(p, 10_000.0)?;
    rope.only(p, &["linear", "yarn"])?;
    rope.write(p)
}
