//! The `gemma2` architecture of GGUF: Gemma 2.
//!
//! As Gemma 3, but queries and keys are not normalised, every other layer sees a window, and both
//! attention's scores and the logits are bent by tanh (Gemma 2, 2024). The converter has already added
//! one to every norm's weight.

use super::{Activation, Attention, Embedding, Family, Keys, ModelSpec, Norm, Output, RopeKind};
use crate::Result;

pub(super) const FAMILY: Family = Family { arch: "gemma2", models: "2B, 9B, 27B", classes: &["Gemma2"], read };

/// The last of so many layers sees everything.
const PERIOD: usize = 2;
/// Tokens that the others see, unless the file says otherwise.
const WINDOW: usize = 4096;
/// Bends of scores and logits, unless the file says otherwise.
const CAPS: [f32; 2] = [50.0, 30.0];

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    let spec = k.decoder(k.common(RopeKind::Halves)?)?;
    k.only("rope.freq_base_swa", f64::from(spec.ropes[0].base), "Gemma 2 turns all layers alike")?;
    let window = Some(k.opt("attention.sliding_window")?.unwrap_or(WINDOW));
    let layer = |windowed| Attention { window: if windowed { window } else { None }, rope: Some(0) };
    let cap = |key, usual| Ok::<_, crate::Error>(Some(k.float(key)?.unwrap_or(usual)));
    Ok(ModelSpec {
        embedding: Embedding { scale: (spec.hidden as f32).sqrt(), ..spec.embedding },
        attention_scale: attention_scale(&spec, 46),
        attention_cap: cap("attn_logit_softcapping", CAPS[0])?,
        activation: Activation::GeluTanh,
        norms: &[Norm::Attn, Norm::PostAttn, Norm::Ffn, Norm::PostFfn],
        attention: k.windowed(spec.n_layer, PERIOD)?.into_iter().map(layer).collect(),
        output: Output { cap: cap("final_logit_softcapping", CAPS[1])?, ..spec.output },
        ..spec
    })
}

/// Gemma scales by the width of a head, its 27B model, which has so many layers, by that of a query's share
/// of the stream.
pub(super) fn attention_scale(spec: &ModelSpec, layers_of_27b: usize) -> f32 {
    let width = if spec.n_layer == layers_of_27b { spec.hidden / spec.n_head } else { spec.head_dim };
    1.0 / (width as f32).sqrt()
}
