//! The `qwen2` architecture of GGUF: Qwen 2 and 2.5, whose queries, keys and values have biases
//! (Qwen2.5 Technical Report, 2024).

use super::{Family, Keys, ModelSpec, RopeKind};
use crate::Result;

pub(super) const FAMILY: Family = Family { arch: "qwen2", models: "Qwen 2 and 2.5", classes: &["Qwen2"], read };

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    let spec = k.decoder(k.common(RopeKind::Halves)?)?;
    Ok(ModelSpec { biases: k.biases(&spec.fused), ..spec })
}
