//! The `phi3` architecture of GGUF: Phi-3, 3.5 and 4 (Phi-3 Technical Report, 2024).
//!
//! Queries, keys and values share a tensor, gate and up another. Long contexts slow each pair of the rotary
//! embedding by a factor of its own (LongRoPE, Ding et al. 2024): one list up to the original context, another
//! for a longer one. Some layers see a window only, as in Hugging Face; llama.cpp lets them see everything.

use super::{Attention, Family, Fused, Keys, ModelSpec, Rope, RopeKind};
use crate::{Code, Error, Result};

pub(super) const FAMILY: Family = Family { arch: "phi3", models: "Phi-3, 3.5 and 4, dense", classes: &["Phi3"], read };

/// The tensors of both lists of factors.
const FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    let mut spec = k.common(RopeKind::Halves)?;
    let (plain, context) = (spec.ropes[0].clone(), spec.context);
    let lists = [k.factors(FACTORS[0], plain.dim)?, k.factors(FACTORS[1], plain.dim)?];
    match lists {
        [None, None] => spec = k.decoder(spec)?,
        [Some(short), Some(long)] => {
            let kind = k.text("rope.scaling.type")?;
            if kind.is_some_and(|t| !["none", "longrope", "linear"].contains(&t)) {
                return Err(Error::new(Code::Unsupported, format!("RoPE scaling {kind:?} beside lists of factors")));
            }
            for key in ["rope.scaling.factor", "rope.scale_linear"] {
                k.only(key, 1.0, "factors are given by tensors, not by a key")?;
            }
            spec = k.causal(spec)?;
            let magnitude = k.float("rope.scaling.attn_factor")?.unwrap_or(1.0);
            let rope = |by: &[f32]| -> Rope { plain.clone().slowed_by(by).grown(magnitude) };
            let original = k.opt("rope.scaling.original_context_length")?.unwrap_or(context).min(context);
            (spec.context, spec.ropes) = (original, vec![rope(&short)]);
            spec.longer = (context > original).then(|| (context, vec![rope(&long)]));
            spec.tables.extend(FACTORS);
        }
        _ => {
            return Err(Error::new(Code::Missing, "one of two lists of RoPE factors is missing")
                .in_section(format!("tensors {}", FACTORS.join(" and ")))
                .hint("the file is not a complete model; convert or download it again"));
        }
    }
    let window = k.opt("attention.sliding_window")?.filter(|w| *w > 0);
    let fused = k.fused(&[Fused::QKV, Fused::GATE_UP]);
    Ok(ModelSpec { biases: k.biases(&fused), fused, attention: vec![Attention { window, rope: Some(0) }], ..spec })
}
