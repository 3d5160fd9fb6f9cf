//! The `llama` architecture of GGUF: SmolLM2, Llama 2 and 3, Mistral, TinyLlama.
//!
//! q/k rows are permuted by the converter, so RoPE rotates adjacent pairs. Some have biases in
//! attention (`attention_bias` in Hugging Face) or in the feed-forward layer (`mlp_bias`). Llama 3 slows its
//! rotary embedding by factors in a tensor.

use super::{Family, Keys, ModelSpec, RopeKind};
use crate::Result;

pub(super) const FAMILY: Family = Family {
    arch: "llama",
    models: "SmolLM2, Llama 2, 3, 3.1 and 3.2, Mistral, TinyLlama",
    classes: &["Llama", "Mistral", "SmolLM"],
    read,
};

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    k.only("attention.sliding_window", 0.0, "use a base without sliding-window attention")?;
    let spec = k.decoder(k.common(RopeKind::Adjacent)?)?;
    Ok(ModelSpec { biases: k.biases(&spec.fused), ..spec })
}
