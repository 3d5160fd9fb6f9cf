//! SmolLM3: as llama, with every fourth layer without RoPE.

use super::decoder::{Sizes, no_window};
use super::llama::turned;
use super::plan::Plan;
use super::{Family, tokenizer};
use conpet_formats::{Code, Result};
use serde_json::{Value, json};
use std::path::Path;

pub(super) const FAMILY: Family = Family { arch: "smollm3", classes: &["SmolLM3ForCausalLM"], plan, tokenizer };

fn tokenizer(p: &mut Plan<'_>, folder: &Path) -> Result<()> {
    tokenizer::byte_pairs(p, folder, &["llama-bpe"])
}

fn plan(p: &mut Plan<'_>) -> Result<()> {
    let s = Sizes::read(p, None)?;
    p.config.only("no_rope_layer_interval", &[json!(4)])?;
    // One stands for a layer with RoPE.
    let usual: Value = (0..s.layers).map(|l| json!(usize::from((l + 1) % 4 != 0))).collect();
    if p.config.get("no_rope_layers").is_some_and(|v| *v != usual) {
        return Err(p.config.wrong(Code::Unsupported, "no_rope_layers", "is not every fourth layer"));
    }
    no_window(p, &s)?;
    s.write(p)?;
    if p.config.opt("head_dim")?.is_some() {
        s.write_head(p);
    }
    turned(p, &s)
}
