//! The `granite` architecture of GGUF: Granite 3 and 4, dense (Granite 3.0 Language Models, 2024).
//!
//! As llama, with factors on embeddings, attention's scores, what a sublayer adds, and logits. A file may say
//! that there is no rotary embedding at all.

use super::{Attention, Embedding, Family, Keys, ModelSpec, Output, RopeKind};
use crate::Result;

pub(super) const FAMILY: Family =
    Family { arch: "granite", models: "Granite 3 and 4, dense", classes: &["Granite"], read };

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    let spec = k.decoder(k.common(RopeKind::Adjacent)?)?;
    k.only("expert_shared_feed_forward_length", 0.0, "a mixture of experts cannot be run; take a dense base")?;
    let scale = |key, usual| Ok::<_, crate::Error>(k.float(key)?.filter(|v| *v != 0.0).unwrap_or(usual));
    let turns = k.flag("rope.scaling.finetuned")?.unwrap_or(true);
    Ok(ModelSpec {
        embedding: Embedding { scale: scale("embedding_scale", 1.0)?, ..spec.embedding },
        residual_scale: scale("residual_scale", 1.0)?,
        attention_scale: scale("attention.scale", spec.attention_scale)?,
        output: Output { scale: 1.0 / k.required_float("logit_scale")?, ..spec.output },
        biases: k.biases(&spec.fused),
        attention: vec![Attention { window: None, rope: turns.then_some(0) }],
        ..spec
    })
}
