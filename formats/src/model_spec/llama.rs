//! The `llama` architecture of GGUF: SmolLM2, Llama 2/3, Mistral, TinyLlama.
//!
//! q/k rows are permuted by the converter, so RoPE rotates adjacent pairs. Some have biases in
//! attention (`attention_bias` in Hugging Face).

use super::{Family, Keys, Linear, ModelSpec};
use crate::{Code, Error, Result};

pub(super) const FAMILY: Family = Family { arch: "llama", models: "SmolLM2, Llama 2/3, Mistral, TinyLlama", read };

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    for key in ["expert_count", "expert_used_count", "attention.sliding_window"] {
        if k.opt(key)?.is_some_and(|v| v > 0) {
            let key = k.name(key);
            return Err(Error::new(Code::Unsupported, format!("{key} is set, which is not supported"))
                .hint("use a dense llama-family base without sliding-window attention"));
        }
    }
    Ok(ModelSpec { biases: k.biases(&[Linear::Q, Linear::K, Linear::V, Linear::Output]), ..k.common()? })
}
