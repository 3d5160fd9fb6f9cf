//! The `nomic-bert` architecture of GGUF: Nomic Embed (Nussbaum et al. 2024), a BERT with a rotary
//! embedding and a gated feed-forward layer.

use super::{Family, Keys, ModelSpec};
use crate::Result;

pub(super) const FAMILY: Family =
    Family { arch: "nomic-bert", models: "Nomic Embed 1 and 1.5", classes: &["NomicBert"], read };

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    k.only("moe_every_n_layers", 0.0, "a mixture of experts cannot be run; take a dense base")?;
    k.encoder()
}
