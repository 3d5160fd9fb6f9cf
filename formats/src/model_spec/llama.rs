//! The `llama` architecture of GGUF: SmolLM2, Llama 2/3, Mistral, TinyLlama.
//!
//! q/k rows are permuted by the converter, so RoPE rotates adjacent pairs.

use super::{ModelSpec, RopeKind, Variant};
use crate::gguf::Gguf;
use crate::{Code, Error, Result};

pub(super) fn read(g: &Gguf<'_>) -> Result<ModelSpec> {
    let num = |key: &str| -> Result<usize> { Ok(g.required_u32(key)? as usize) };
    let opt = |key: &str| -> Result<Option<usize>> { Ok(g.u32(key)?.map(|v| v as usize)) };
    let hidden = num("llama.embedding_length")?;
    let n_head = num("llama.attention.head_count")?;
    if n_head == 0 {
        return Err(Error::new(Code::Value, "llama.attention.head_count is 0").in_section("metadata"));
    }
    for unsupported in ["llama.expert_count", "llama.attention.sliding_window"] {
        if g.u32(unsupported)?.is_some_and(|v| v > 0) {
            return Err(Error::new(Code::Unsupported, format!("{unsupported} is set, which is not supported"))
                .hint("use a dense llama-family base without sliding-window attention"));
        }
    }
    if let Some(kind) = g.str("llama.rope.scaling.type")?.filter(|k| *k != "none") {
        return Err(Error::new(Code::Unsupported, format!("RoPE scaling {kind:?} is not supported"))
            .hint("use a base without llama.rope.scaling.type, or with the value none"));
    }
    if g.tensor("rope_freqs.weight").is_some() {
        return Err(Error::new(Code::Unsupported, "per-frequency RoPE factors (rope_freqs.weight) are not supported")
            .hint("Llama 3.1 and later use them; take a base without them"));
    }
    let head_dim = match opt("llama.attention.key_length")? {
        Some(d) => d,
        None if hidden % n_head == 0 => hidden / n_head,
        None => {
            return Err(Error::new(
                Code::Value,
                format!("embedding_length {hidden} is not a multiple of head_count {n_head}"),
            )
            .in_section("metadata"));
        }
    };
    let embd = g.tensor("token_embd.weight").ok_or_else(|| Error::new(Code::Missing, "no tensor token_embd.weight"))?;
    ModelSpec {
        arch: "llama".into(),
        name: g.str("general.name")?.unwrap_or("llama").to_owned(),
        n_layer: num("llama.block_count")?,
        hidden,
        n_head,
        n_kv_head: opt("llama.attention.head_count_kv")?.unwrap_or(n_head),
        head_dim,
        ffn: num("llama.feed_forward_length")?,
        vocab: usize::try_from(embd.rows()).unwrap_or(usize::MAX),
        context: num("llama.context_length")?,
        norm_eps: g.required_f32("llama.attention.layer_norm_rms_epsilon")?,
        rope_base: g.f32("llama.rope.freq_base")?.unwrap_or(10_000.0),
        rope_dim: opt("llama.rope.dimension_count")?.unwrap_or(head_dim),
        rope: RopeKind::Adjacent,
        tied: g.tensor("output.weight").is_none(),
        variant: Variant::default(),
    }
    .check()
}
