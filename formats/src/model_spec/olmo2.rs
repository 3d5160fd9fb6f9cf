//! The `olmo2` architecture of GGUF: OLMo 2 and 3.
//!
//! Norms stand after attention and the feed-forward layer instead of before them, and queries and keys are
//! normalised with all heads together (2 OLMo 2 Furious, 2024). In OLMo 3, three layers of four see a window,
//! and a rotary embedding is stretched only in the others.

use super::{Attention, Family, Keys, ModelSpec, Norm, RopeKind};
use crate::Result;

pub(super) const FAMILY: Family = Family { arch: "olmo2", models: "OLMo 2 and 3", classes: &["Olmo2", "Olmo3"], read };

/// The last of so many layers sees everything, where others do not.
const PERIOD: usize = 4;

fn read(k: &Keys<'_>) -> Result<ModelSpec> {
    let common = k.common(RopeKind::Halves)?;
    let plain = common.ropes[0].clone();
    let mut spec = k.decoder(common)?;
    let window = k.opt("attention.sliding_window")?.filter(|w| *w > 0);
    k.only("rope.freq_base_swa", f64::from(plain.base), "OLMo turns all layers at one base frequency")?;
    let windowed = k.windowed(spec.n_layer, PERIOD)?;
    if window.is_some() {
        spec.ropes.push(plain);
        let layer =
            |local: bool| Attention { window: if local { window } else { None }, rope: Some(usize::from(local)) };
        spec.attention = windowed.into_iter().map(layer).collect();
    }
    Ok(ModelSpec { norms: &[Norm::Q, Norm::K, Norm::PostAttn, Norm::PostFfn], whole_qk_norm: true, ..spec })
}
