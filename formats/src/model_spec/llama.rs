//! The `llama` architecture of GGUF: SmolLM2, Llama 2/3, Mistral, TinyLlama.
//!
//! q/k rows are permuted by the converter, so RoPE rotates adjacent pairs.

use super::{Keys, ModelSpec};
use crate::{Code, Error, Result};

pub(super) fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    for unsupported in ["expert_count", "attention.sliding_window"] {
        if k.opt(unsupported)?.is_some_and(|v| v > 0) {
            let key = k.name(unsupported);
            return Err(Error::new(Code::Unsupported, format!("{key} is set, which is not supported"))
                .hint("use a dense llama-family base without sliding-window attention"));
        }
    }
    k.no_rope_scaling("use a base without llama.rope.scaling.type, or with the value none")?;
    if k.gguf.tensor("rope_freqs.weight").is_some() {
        return Err(Error::new(Code::Unsupported, "per-frequency RoPE factors (rope_freqs.weight) are not supported")
            .hint("Llama 3.1 and later use them; take a base without them"));
    }
    let common = k.common()?;
    let rope_dim = k.opt("rope.dimension_count")?.unwrap_or(common.head_dim);
    ModelSpec { rope_dim, ..common }.check()
}
