//! Phi-3, Phi-3.5 and Phi-4: fused linears, and longrope.

use super::decoder::{Layers, Sizes, activation, tensors};
use super::plan::Plan;
use super::rope::Rope;
use super::{Family, tokenizer};
use conpet_formats::{Code, Result};
use serde_json::json;
use std::path::Path;

pub(super) const FAMILY: Family = Family { arch: "phi3", classes: &["Phi3ForCausalLM"], plan, tokenizer };

fn tokenizer(p: &mut Plan<'_>, folder: &Path) -> Result<()> {
    if tokenizer::is_sentence_pieces(folder)? {
        return tokenizer::sentence_pieces(p, folder, None);
    }
    tokenizer::byte_pairs(p, folder, &["dbrx", "gpt-4o"])
}

fn plan(p: &mut Plan<'_>) -> Result<()> {
    let s = Sizes::read(p, None)?;
    let c = p.config;
    activation(p, &["silu"])?;
    c.only("attention_bias", &[json!(false)])?;
    if s.head_dim * s.heads != s.hidden {
        return Err(c.wrong(Code::Unsupported, "head_dim", "times the heads is not hidden_size"));
    }
    s.write(p)?;
    let rope = Rope::read(p, 10_000.0)?;
    rope.only(p, &["longrope"])?;
    let in_rope = rope.number(p, "original_max_position_embeddings")?.map(|n| n as usize);
    let original = c.opt("original_max_position_embeddings")?.or(in_rope).unwrap_or(s.context);
    let part = c.float("partial_rotary_factor")?.or(rope.number(p, "partial_rotary_factor")?).unwrap_or(1.0);
    let dim = (part * s.hidden as f64) as usize / s.heads;
    p.u32("rope.scaling.original_context_length", original);
    p.u32("rope.dimension_count", dim);
    p.f32("rope.freq_base", rope.theta);
    // Zero says that every token sees everything.
    p.u32("attention.sliding_window", c.opt("sliding_window")?.unwrap_or(0));
    if rope.kind == "longrope" {
        let scale = s.context as f64 / original as f64;
        let factor = if scale > 1.0 { (1.0 + scale.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
        p.f32("rope.scaling.attn_factor", factor);
        for (name, key) in [("rope_factors_long", "long_factor"), ("rope_factors_short", "short_factor")] {
            let factors = rope.list(p, key)?;
            if factors.len() != dim / 2 {
                let what = format!("has {} numbers in {key} where {} are needed", factors.len(), dim / 2);
                return Err(c.wrong(Code::Shape, "rope_scaling", &what));
            }
            p.values(&format!("{name}.weight"), factors);
        }
    }
    tensors(p, &s, &Layers { fused: true, ..Layers::default() })
}
