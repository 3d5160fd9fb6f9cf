//! Granite 3: as llama, with four multipliers.

use super::decoder::Sizes;
use super::llama::turned;
use super::plan::Plan;
use super::{Family, tokenizer};
use conpet_formats::{Code, Result};
use std::path::Path;

pub(super) const FAMILY: Family = Family { arch: "granite", classes: &["GraniteForCausalLM"], plan, tokenizer };

fn tokenizer(p: &mut Plan<'_>, folder: &Path) -> Result<()> {
    tokenizer::byte_pairs(p, folder, &["refact"])
}

fn plan(p: &mut Plan<'_>) -> Result<()> {
    let s = Sizes::read(p, None)?;
    if s.head_dim * s.heads != s.hidden {
        return Err(p.config.wrong(Code::Unsupported, "head_dim", "times the heads is not hidden_size"));
    }
    s.write(p)?;
    for (key, name) in [
        ("attention_multiplier", "attention.scale"),
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
    ] {
        p.f32(name, p.config.float(key)?.unwrap_or(1.0));
    }
    turned(p, &s)
}
