//! The `gemma3` architecture of GGUF: the text models of Gemma 3.
//!
//! Against llama: embeddings grow by √hidden; queries and keys are normalised by head; what
//! attention and feed-forward add is normalised too; the gate is GELU; five layers of six see a
//! window only and turn at another frequency (Gemma 3 Technical Report, 2025). The converter has
//! already added one to every norm's weight.

use super::gemma2::attention_scale;
use super::{Activation, Attention, Embedding, Family, Keys, ModelSpec, Norm, Rope, RopeKind};
use crate::{Code, Error, Result};

pub(super) const FAMILY: Family = Family { arch: "gemma3", models: "270M to 27B, text", classes: &["Gemma3"], read };

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
    for key in ["rope.freq_base_swa", "rope.local_freq_base"] {
        k.only(key, f64::from(LOCAL_ROPE), "Gemma 3 has that; take one of those")?;
    }
    k.only("attention.sliding_window_type", PERIOD as f64, "Gemma 3 has that; take one of those")?;
    let mut common = k.common(RopeKind::Halves)?;
    let dim = common.ropes[0].dim;
    let base = k.float("rope.freq_base")?.unwrap_or(GLOBAL_ROPE);
    common.ropes = vec![Rope::new(RopeKind::Halves, base, dim)];
    let spec = k.decoder(common)?;
    let everything = Attention { window: None, rope: Some(0) };
    let window = k.num("attention.sliding_window")?;
    let windowed = k.windowed(spec.n_layer, PERIOD)?;
    let (ropes, attention) = if window == 0 {
        (spec.ropes.clone(), vec![everything])
    } else {
        let local = Attention { window: Some(window), rope: Some(1) };
        let layers = windowed.into_iter().map(|w| if w { local } else { everything });
        // Only the layers that see everything are stretched.
        (vec![spec.ropes[0].clone(), Rope::new(RopeKind::Halves, LOCAL_ROPE, dim)], layers.collect())
    };
    Ok(ModelSpec {
        embedding: Embedding { scale: (spec.hidden as f32).sqrt(), ..spec.embedding },
        attention_scale: attention_scale(&spec, 62),
        activation: Activation::GeluTanh,
        norms: &[Norm::Attn, Norm::Q, Norm::K, Norm::PostAttn, Norm::Ffn, Norm::PostFfn],
        ropes,
        attention,
        ..spec
    })
}
