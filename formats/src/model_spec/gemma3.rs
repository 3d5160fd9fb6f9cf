//! The `gemma3` architecture of GGUF: the text models of Gemma 3, 270M and 1B.
//!
//! Against llama: embeddings grow by √hidden; queries and keys are normalised by head; what
//! attention and feed-forward add is normalised too; the gate is GELU; five layers of six see a
//! window only and turn at another frequency (Gemma 3 Technical Report, 2025). The converter has
//! already added one to every norm's weight.

use super::{Activation, Attention, Family, Keys, ModelSpec, Norm, Rope, RopeKind};
use crate::{Code, Error, Result};

pub(super) const FAMILY: Family = Family { arch: "gemma3", models: "270M, 1B", read };

/// The last of so many layers sees everything.
const PERIOD: usize = 6;
/// RoPE base of the layers that see a window.
const LOCAL_ROPE: f32 = 10_000.0;
/// RoPE base of the others, unless the file says otherwise.
const GLOBAL_ROPE: f32 = 1_000_000.0;

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
        if k.float(key)?.is_some_and(|v| v != 0.0) {
            return Err(Error::new(Code::Unsupported, format!("{} is set, which is not supported", k.name(key)))
                .hint("Gemma 3 has none; this may be a Gemma 2 file under another name"));
        }
    }
    let hint = "Gemma 3 of 270M and 1B has that; take one of those";
    for key in ["rope.freq_base_swa", "rope.local_freq_base"] {
        k.only(key, f64::from(LOCAL_ROPE), hint)?;
    }
    for key in ["attention.sliding_window_pattern", "attention.sliding_window_type"] {
        k.only(key, PERIOD as f64, hint)?;
    }
    let common = k.common()?;
    let rope = Rope { kind: RopeKind::Halves, ..common.ropes[0] };
    let global = Rope { base: k.float("rope.freq_base")?.unwrap_or(GLOBAL_ROPE), ..rope };
    let everything = Attention { window: None, rope: 0 };
    let (ropes, attention) = match k.num("attention.sliding_window")? {
        0 => (vec![global], vec![everything]),
        window => {
            let mut layers = vec![Attention { window: Some(window), rope: 1 }; PERIOD];
            layers[PERIOD - 1] = everything;
            (vec![global, Rope { base: LOCAL_ROPE, ..rope }], layers)
        }
    };
    Ok(ModelSpec {
        embedding_scale: (common.hidden as f32).sqrt(),
        activation: Activation::GeluTanh,
        norms: &[Norm::Attn, Norm::Q, Norm::K, Norm::PostAttn, Norm::Ffn, Norm::PostFfn],
        ropes,
        attention,
        ..common
    })
}
