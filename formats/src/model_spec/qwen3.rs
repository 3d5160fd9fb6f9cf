//! The `qwen3` architecture of GGUF: Qwen 3, which normalises each query and key head (Qwen3 Technical
//! Report, 2025).

use super::{Family, Keys, ModelSpec, Norm, RopeKind};
use crate::Result;

pub(super) const FAMILY: Family = Family { arch: "qwen3", models: "Qwen 3, dense", classes: &["Qwen3"], read };

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    Ok(ModelSpec { norms: &[Norm::Attn, Norm::Q, Norm::K, Norm::Ffn], ..k.decoder(k.common(RopeKind::Halves)?)? })
}
