//! The `gemma3` architecture of GGUF: the text models of Gemma 3, 270M and 1B.
//!
//! Against llama: embeddings grow by √hidden; queries and keys are normalised by head; what
//! attention and feed-forward add is normalised too; the gate is GELU; five layers of six see a
//! window only and turn at another frequency (Gemma 3 Technical Report, 2025). The converter has
//! already added one to every norm's weight.

use super::{Activation, Keys, Local, ModelSpec, RopeKind, Variant};
use crate::{Code, Error, Result};

/// Every so many layers one sees everything.
const PERIOD: usize = 6;
/// RoPE base of the layers that see a window.
const LOCAL_ROPE: f32 = 10_000.0;

/// RoPE base of the others, unless the file says otherwise.
const GLOBAL_ROPE: f32 = 1_000_000.0;

pub(super) fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
        if k.float(key)?.is_some_and(|v| v != 0.0) {
            return Err(Error::new(Code::Unsupported, format!("{} is set, which is not supported", k.name(key)))
                .hint("Gemma 3 has none; this may be a Gemma 2 file under another name"));
        }
    }
    k.no_rope_scaling("Gemma 3 of 4B and more use it; take 270M or 1B")?;
    let fixed = |key: &str, is: Option<f64>, must: f64| match is.filter(|v| *v != must) {
        Some(v) => Err(Error::new(Code::Unsupported, format!("{} is {v}, only {must} is supported", k.name(key)))
            .hint("Gemma 3 of 270M and 1B has that; take one of those")),
        None => Ok(()),
    };
    for (key, must) in
        [("rope.freq_base_swa", LOCAL_ROPE), ("rope.local_freq_base", LOCAL_ROPE), ("rope.scaling.factor", 1.0)]
    {
        fixed(key, k.float(key)?.map(f64::from), f64::from(must))?;
    }
    for key in ["attention.sliding_window_pattern", "attention.sliding_window_type"] {
        fixed(key, k.opt(key)?.map(|v| v as f64), PERIOD as f64)?;
    }
    if k.num("attention.key_length")? != k.num("attention.value_length")? {
        return Err(Error::new(Code::Unsupported, "keys and values of different widths are not supported")
            .in_section(k.name("attention.value_length"))
            .hint("Gemma 3 has them equal; convert the file again"));
    }
    let window = k.num("attention.sliding_window")?;
    let common = k.common()?;
    ModelSpec {
        rope_base: k.float("rope.freq_base")?.unwrap_or(GLOBAL_ROPE),
        rope: RopeKind::Halves,
        variant: Variant {
            activation: Activation::GeluTanh,
            embedding_scale: (common.hidden as f32).sqrt(),
            qk_norm: true,
            post_norm: true,
            local: (window > 0).then_some(Local { window, rope_base: LOCAL_ROPE, period: PERIOD }),
        },
        ..common
    }
    .check()
}
