//! The `bert` architecture of GGUF: BERT (Devlin et al. 2019) and RoBERTa (Liu et al. 2019), and the
//! embedding models made of them: MiniLM, BGE, E5, GTE.
//!
//! Positions are learned; a RoBERTa's table begins with the first position that text can have.

use super::{Activation, Attention, Embedding, Family, Keys, ModelSpec};
use crate::Result;

pub(super) const FAMILY: Family =
    Family { arch: "bert", models: "BERT, RoBERTa, MiniLM, BGE, E5", classes: &["Bert", "Roberta"], read };

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    let spec = k.encoder()?;
    for key in ["rope.freq_base", "rope.dimension_count"] {
        k.absent(key, "positions are learned in this family; this may be another one under its name")?;
    }
    Ok(ModelSpec {
        embedding: Embedding { positions: true, ..spec.embedding },
        activation: Activation::Gelu,
        gated: false,
        ropes: Vec::new(),
        attention: vec![Attention { window: None, rope: None }],
        ..spec
    })
}
