//! The `gemma3` architecture of GGUF: the text models of Gemma 3, 270M and 1B.
//!
//! Against llama: embeddings grow by √hidden; queries and keys are normalised by head; what
//! attention and feed-forward add is normalised too; the gate is GELU; five layers of six see a
//! window only and turn at another frequency (Gemma 3 Technical Report, 2025). The converter has
//! already added one to every norm's weight.

use super::{Activation, Local, ModelSpec, RopeKind, Variant};
use crate::gguf::Gguf;
use crate::{Code, Error, Result};

/// Every so many layers one sees everything.
const PERIOD: usize = 6;
/// RoPE base of the layers that see a window.
const LOCAL_ROPE: f32 = 10_000.0;

pub(super) fn read(g: &Gguf<'_>) -> Result<ModelSpec> {
    let num = |key: &str| -> Result<usize> { Ok(g.required_u32(key)? as usize) };
    for key in ["gemma3.final_logit_softcapping", "gemma3.attn_logit_softcapping"] {
        if g.f32(key)?.is_some_and(|v| v != 0.0) {
            return Err(Error::new(Code::Unsupported, format!("{key} is set, which is not supported"))
                .hint("Gemma 3 has none; this may be a Gemma 2 file under another name"));
        }
    }
    if let Some(kind) = g.str("gemma3.rope.scaling.type")?.filter(|k| *k != "none") {
        return Err(Error::new(Code::Unsupported, format!("RoPE scaling {kind:?} is not supported"))
            .hint("Gemma 3 of 4B and more use it; take 270M or 1B"));
    }
    let fixed = |key: &str, is: Option<f64>, must: f64| match is {
        Some(v) if v != must => Err(Error::new(Code::Unsupported, format!("{key} is {v}, only {must} is supported"))
            .hint("Gemma 3 of 270M and 1B has that; take one of those")),
        _ => Ok(()),
    };
    for (key, must) in [
        ("gemma3.rope.freq_base_swa", f64::from(LOCAL_ROPE)),
        ("gemma3.rope.local_freq_base", f64::from(LOCAL_ROPE)),
        ("gemma3.rope.scaling.factor", 1.0),
    ] {
        fixed(key, g.f32(key)?.map(f64::from), must)?;
    }
    for key in ["gemma3.attention.sliding_window_pattern", "gemma3.attention.sliding_window_type"] {
        fixed(key, g.u32(key)?.map(f64::from), PERIOD as f64)?;
    }
    let (hidden, n_head) = (num("gemma3.embedding_length")?, num("gemma3.attention.head_count")?);
    let head_dim = num("gemma3.attention.key_length")?;
    if num("gemma3.attention.value_length")? != head_dim {
        return Err(Error::new(Code::Unsupported, "keys and values of different widths are not supported")
            .in_section("gemma3.attention.value_length")
            .hint("Gemma 3 has them equal; convert the file again"));
    }
    let embd = g.tensor("token_embd.weight").ok_or_else(|| Error::new(Code::Missing, "no tensor token_embd.weight"))?;
    let window = num("gemma3.attention.sliding_window")?;
    ModelSpec {
        arch: "gemma3".into(),
        name: g.str("general.name")?.unwrap_or("gemma3").to_owned(),
        n_layer: num("gemma3.block_count")?,
        hidden,
        n_head,
        n_kv_head: g.u32("gemma3.attention.head_count_kv")?.map_or(n_head, |v| v as usize),
        head_dim,
        ffn: num("gemma3.feed_forward_length")?,
        vocab: usize::try_from(embd.rows()).unwrap_or(usize::MAX),
        context: num("gemma3.context_length")?,
        norm_eps: g.required_f32("gemma3.attention.layer_norm_rms_epsilon")?,
        rope_base: g.f32("gemma3.rope.freq_base")?.unwrap_or(1_000_000.0),
        rope_dim: head_dim,
        rope: RopeKind::Halves,
        tied: g.tensor("output.weight").is_none(),
        variant: Variant {
            activation: Activation::GeluTanh,
            embedding_scale: (hidden as f32).sqrt(),
            qk_norm: true,
            post_norm: true,
            local: (window > 0).then_some(Local { window, rope_base: LOCAL_ROPE, period: PERIOD }),
        },
    }
    .check()
}
