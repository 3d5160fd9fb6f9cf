//! Gemma 3, text models: as Gemma 2, with norms of queries and keys in place of soft caps, and a window in five
//! layers of six, which turn at another frequency.

use super::Family;
use super::decoder::{Layers, Sizes, layer_types, tensors};
use super::gemma2::{AROUND, same, tokenizer};
use super::plan::Plan;
use super::rope::Rope;
use conpet_formats::{Code, Result};
use serde_json::json;

pub(super) const FAMILY: Family = Family { arch: "gemma3", classes: &["Gemma3ForCausalLM"], plan, tokenizer };

/// The last of so many layers sees everything.
const PERIOD: usize = 6;

fn plan(p: &mut Plan<'_>) -> Result<()> {
    let s = Sizes::read(p, Some(256))?;
    same(p, &s)?;
    let c = p.config;
    for key in ["sliding_window_pattern", "_sliding_window_pattern"] {
        c.only(key, &[json!(PERIOD)])?;
    }
    // Gemma 2 has them.
    c.only("attn_logit_softcapping", &[])?;
    c.only("final_logit_softcapping", &[])?;
    layer_types(p, &s, &|l| (l + 1) % PERIOD != 0)?;
    s.write(p)?;
    s.write_head(p);
    p.u32("attention.sliding_window", c.opt("sliding_window")?.unwrap_or(4096));
    if c.get("rope_parameters").is_some() {
        let what = "is as transformers 5 writes it, which is not read for this family";
        return Err(c
            .wrong(Code::Unsupported, "rope_parameters", what)
            .hint("save the checkpoint with transformers 4"));
    }
    let rope = Rope::read(p, 1_000_000.0)?;
    rope.only(p, &["linear"])?;
    rope.write(p)?;
    let local = c.float("rope_local_base_freq")?.unwrap_or(10_000.0);
    p.f32("rope.freq_base_swa", local);
    let qk_norm = Some((s.head_dim, s.head_dim));
    tensors(p, &s, &Layers { norms: AROUND, plus_one: true, qk_norm, ..Layers::default() })
}
