//! Hugging Face's names of a decoder's linears, which are the same in all families here, and the sites they stand for.

use crate::error::clip;
use crate::model_spec::ModelSpec;
use crate::pet::{Place, Site};
use crate::{Code, Error, Result};

const MODULES: [(&str, Place); 7] = [
    ("self_attn.q_proj", Place::Q),
    ("self_attn.k_proj", Place::K),
    ("self_attn.v_proj", Place::V),
    ("self_attn.o_proj", Place::Output),
    ("mlp.gate_proj", Place::Gate),
    ("mlp.up_proj", Place::Up),
    ("mlp.down_proj", Place::Down),
];

/// Refuses bases whose linears have other names, or share a tensor, elsewhere.
///
/// # Errors
/// `E_UNSUPPORTED`.
pub(super) fn check_base(spec: &ModelSpec) -> Result<()> {
    if spec.causal && spec.fused.is_empty() {
        return Ok(());
    }
    Err(Error::new(Code::Unsupported, format!("modules of a {} base are not exchanged with other programs", spec.arch))
        .hint("they are exchanged for decoders whose linears have a tensor each; conpet-inspect extract copies any module as it is"))
}

/// The places that are linears.
pub(super) const PLACES: [Place; 7] =
    [Place::Q, Place::K, Place::V, Place::Output, Place::Gate, Place::Up, Place::Down];

/// The last word of a linear's name, `q_proj`; what lists of targets use. `None` if it is no linear.
pub(super) fn short(place: Place) -> Option<&'static str> {
    let (module, _) = MODULES.iter().find(|m| m.1 == place)?;
    module.rsplit('.').next()
}

/// The full name, `model.layers.3.self_attn.q_proj`.
pub(super) fn path(site: Site) -> Result<String> {
    match MODULES.iter().find(|m| m.1 == site.place) {
        Some((module, _)) => Ok(format!("model.layers.{}.{module}", site.layer)),
        None => Err(Error::new(Code::Unsupported, format!("site {site} is no linear, and PEFT adapts only those"))
            .hint("conpet-inspect extract copies any module as it is")),
    }
}

/// The site with a full name, with or without the `model.` that a language-model head's class puts before.
///
/// # Errors
/// `E_UNSUPPORTED` for anything but the seven linears, `E_BASE` for a layer that the base has not.
pub(super) fn site(spec: &ModelSpec, path: &str) -> Result<Site> {
    let inner = path.strip_prefix("model.").unwrap_or(path);
    let found = inner.strip_prefix("layers.").and_then(|s| s.split_once('.')).and_then(|(layer, module)| {
        let place = MODULES.iter().find(|m| m.0 == module)?.1;
        let number: usize = layer.parse().ok()?;
        // Comparing spellings refuses `+7` and `07`.
        (number.to_string() == layer).then_some(Site { layer: number, place })
    });
    let site = found.ok_or_else(|| {
        Error::new(Code::Unsupported, format!("{:?} is none of the linears a module can act at", clip(path)))
            .hint("a module acts at q, k, v, o, gate, up and down projections of layers; lm_head, embeddings and norms cannot be imported")
    })?;
    if site.layer >= spec.n_layer {
        return Err(Error::new(
            Code::BaseMismatch,
            format!("{:?} is in layer {}, this base has {} layers", clip(path), site.layer, spec.n_layer),
        )
        .hint("the adapter was made for a deeper base; give that base"));
    }
    Ok(site)
}
