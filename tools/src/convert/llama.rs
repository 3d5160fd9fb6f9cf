//! Llama, Mistral, SmolLM2 and TinyLlama.

use super::decoder::{Layers, Sizes, activation, no_window, tensors};
use super::plan::Plan;
use super::rope::Rope;
use super::{Family, tokenizer};
use conpet_formats::Result;
use serde_json::json;
use std::path::Path;

pub(super) const FAMILY: Family =
    Family { arch: "llama", classes: &["LlamaForCausalLM", "MistralForCausalLM", "LlamaModel"], plan, tokenizer };

fn tokenizer(p: &mut Plan<'_>, folder: &Path) -> Result<()> {
    if tokenizer::is_sentence_pieces(folder)? {
        return tokenizer::sentence_pieces(p, folder, None);
    }
    tokenizer::byte_pairs(p, folder, &["smollm", "llama-bpe"])
}

fn plan(p: &mut Plan<'_>) -> Result<()> {
    let s = Sizes::read(p, None)?;
    p.config.only("rope_interleaved", &[json!(false)])?;
    p.config.get("is_llama_config");
    no_window(p, &s)?;
    s.write(p)?;
    s.write_head(p);
    turned(p, &s)
}

/// What llama and the families made of it have: rotary embeddings of every kind over adjacent pairs, and biases in
/// attention if the file says so.
pub(super) fn turned(p: &mut Plan<'_>, s: &Sizes) -> Result<()> {
    activation(p, &["silu"])?;
    p.config.only("mlp_bias", &[json!(false)])?;
    p.u32("vocab_size", s.vocab);
    p.u32("rope.dimension_count", s.head_dim);
    let rope = Rope::read(p, 10_000.0)?;
    rope.only(p, &["linear", "yarn", "llama3"])?;
    rope.write(p)?;
    if rope.kind == "llama3" {
        let factors = rope.llama3(p, s.head_dim)?;
        p.values("rope_freqs.weight", factors);
    }
    let bias = p.config.flag("attention_bias", false)?;
    tensors(p, s, &Layers { pairs: true, qkv_bias: bias, output_bias: bias, ..Layers::default() })
}
