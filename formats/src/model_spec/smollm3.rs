//! The `smollm3` architecture of GGUF: SmolLM3, every fourth layer of which has no rotary embedding
//! (SmolLM3, 2025; Yang et al. 2025, arXiv 2501.18795).

use super::{Attention, Family, Keys, ModelSpec, RopeKind};
use crate::Result;

pub(super) const FAMILY: Family = Family { arch: "smollm3", models: "SmolLM3", classes: &["SmolLM3"], read };

/// The last of so many layers has no rotary embedding.
const PERIOD: usize = 4;

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    let spec = k.decoder(k.common(RopeKind::Adjacent)?)?;
    let mut attention = vec![Attention { window: None, rope: Some(0) }; PERIOD];
    attention[PERIOD - 1].rope = None;
    Ok(ModelSpec { biases: k.biases(&spec.fused), attention, ..spec })
}
