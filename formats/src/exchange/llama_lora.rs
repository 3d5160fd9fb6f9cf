//! llama.cpp's LoRA files: a GGUF with `general.type` `adapter` and, for each linear, `<site>.lora_a`
//! `[r, in]` and `<site>.lora_b` `[out, r]` (rows of the base's own order; src/llama-adapter.cpp).
//!
//! The scale at a site is `adapter.lora.alpha / r`; llama.cpp takes a missing or zero alpha as a scale of 1.

use super::Parcel;
use super::low_rank::{self, Halves};
use crate::bundle::manifest::BaseRef;
use crate::error::clip;
use crate::gguf::{Gguf, TensorType, Value, Writer};
use crate::model_spec::ModelSpec;
use crate::pet::{Lora, Pet, Site, lora, lora::Scaling};
use crate::quant::{self, QuantType};
use crate::tensors::{Dtype, Tensors};
use crate::{Code, Error, Result};
use std::io::Write;

const ALPHA: &str = "adapter.lora.alpha";
const TASK: &str = "adapter.lora.task_name";
const PREFIX: &str = "adapter.lora.prompt_prefix";

/// Reads a LoRA file for a base.
///
/// # Errors
/// If it is no LoRA, names a tensor that is no site, or does not fit the base; nothing is left out.
pub fn read(bytes: &[u8], spec: &ModelSpec, base: &BaseRef) -> Result<Parcel> {
    super::refuse_pickle(bytes)?;
    let g = Gguf::parse(bytes)?;
    let must = |key: &str, want: &str| match g.str(key)? {
        Some(got) if got == want => Ok(()),
        got => Err(Error::new(
            Code::Unsupported,
            format!("{key} is {}, not {want:?}", got.map_or("absent".into(), |s| format!("{:?}", clip(s)))),
        )
        .hint("give a LoRA file of llama.cpp (convert_lora_to_gguf.py makes them)")),
    };
    must("general.type", "adapter")?;
    must("adapter.type", "lora")?;
    let arch = g.required_str("general.architecture")?;
    if arch != spec.arch {
        return Err(Error::new(
            Code::BaseMismatch,
            format!("the adapter is for architecture {:?}, this base is {:?}", clip(arch), spec.arch),
        )
        .hint("give the base that the adapter was trained on"));
    }
    let known_base = super::check_origin(base, |key| g.str(key).ok().flatten().map(str::to_owned))?;
    let mut notes = Vec::new();
    for (key, value) in g.metadata().filter(|(k, _)| k.starts_with("adapter.")) {
        match (key, value) {
            ("adapter.type" | ALPHA, _) => {}
            (TASK | PREFIX, Value::String("")) => {}
            (TASK, Value::String(s)) => notes.push(format!("the file calls its task {:?}", clip(s))),
            (PREFIX, Value::String(s)) => notes.push(format!(
                "the file asks for {:?} before the prompt; put it into --template if it is wanted",
                clip(s)
            )),
            _ => {
                return Err(Error::new(
                    Code::Unsupported,
                    format!("the adapter sets {:?}, which no module can hold", clip(key)),
                )
                .hint("adapters that act only after certain tokens (aLoRA) cannot be imported"));
            }
        }
    }
    let mut halves = Halves::default();
    for t in g.tensors() {
        let at = |e: Error| e.in_section(format!("tensor {}", clip(t.name)));
        let (site, which) = name(spec, t.name).map_err(at)?;
        let TensorType::Known(ty) = t.ty else {
            return Err(at(Error::new(Code::Type, "a tensor type this release cannot read")));
        };
        if t.n_dims != 2 {
            return Err(at(Error::new(Code::Shape, format!("{} sizes, not 2", t.n_dims))));
        }
        let shape = vec![t.ne[1] as usize, t.ne[0] as usize];
        let mut numbers = vec![0.0; shape[0] * shape[1]];
        quant::dequantize(ty, g.data(t), &mut numbers);
        halves.add(site, which, shape, numbers)?;
    }
    let alpha = g.f32(ALPHA)?.unwrap_or(0.0);
    if !(alpha >= 0.0 && alpha.is_finite()) {
        return Err(Error::new(Code::Value, format!("{ALPHA} is {alpha}, not a positive number")));
    }
    // The shortest decimal of the f32 is what was meant: 0.1, not 0.100000001490116.
    let alpha: f64 = alpha.to_string().parse().unwrap_or(0.0);
    let pairs = halves.pairs(spec, |_, rank| Ok(if alpha == 0.0 { 1.0 } else { alpha / rank as f64 }))?;
    let rank = pairs.values().map(|p| p.rank).max().unwrap_or(0);
    if alpha == 0.0 {
        notes.push("the file has no alpha; as in llama.cpp, the scale is 1".into());
    }
    let usual = Lora { rank, alpha: if alpha == 0.0 { rank as f64 } else { alpha }, scaling: Scaling::AlphaOverRank };
    let mut parcel = low_rank::parcel(pairs, usual)?.from("llama.cpp LoRA", bytes, known_base);
    parcel.notes.extend(notes);
    Ok(parcel)
}

/// The site, and whether A (0) or B (1), that a tensor's name says.
fn name(spec: &ModelSpec, name: &str) -> Result<(Site, usize)> {
    let (site, which) = lora::split_name(name).ok_or_else(|| {
        Error::new(Code::Unsupported, "a tensor that is neither lora_a nor lora_b")
            .hint("llama.cpp skips norm vectors in silence; here nothing is skipped: make the file again without it")
    })?;
    let site = match Site::parse(spec, site) {
        Ok(s) => s,
        // A linear of a layer that the base has not is the sign of a deeper base.
        Err(e) => {
            let deeper = ModelSpec { n_layer: usize::MAX, ..spec.clone() };
            let other = Site::parse(&deeper, site).is_ok();
            return Err(if other {
                Error::new(Code::BaseMismatch, e.message().to_owned())
                    .hint("the adapter was made for a deeper base; give that base")
            } else {
                e
            });
        }
    };
    if !super::names::PLACES.contains(&site.place) {
        return Err(Error::new(Code::Unsupported, format!("LoRA at {site}, which is no linear of a layer"))
            .hint("adapters of embeddings and norms cannot be imported"));
    }
    Ok((site, which))
}

/// Writes a LoRA file, as llama.cpp's `--lora` takes it.
///
/// # Errors
/// `E_UNSUPPORTED` for a module that is not a LoRA alone.
pub fn write(out: &mut dyn Write, parcel: &Parcel, spec: &ModelSpec, base: &BaseRef, task: &str) -> Result<()> {
    super::names::check_base(spec)?;
    let Pet::Lora(lora) = parcel.only("a llama.cpp adapter")?.pet else {
        return Err(Error::new(Code::Unsupported, format!("the module is {}, llama.cpp loads LoRA only", parcel.pet))
            .hint("--to peft takes ia3, prompt and prefix too"));
    };
    let tensors = Tensors::parse(&parcel.payload)?;
    let mut w = Writer::new();
    w.str("general.type", "adapter")
        .str("general.architecture", &spec.arch)
        .str("general.name", task)
        .str("adapter.type", "lora")
        // llama.cpp divides by the rank again.
        .f32(ALPHA, (lora.scale() * lora.rank as f64) as f32)
        .str(TASK, task);
    super::base_entries(base).iter().for_each(|(k, v)| {
        w.str(k, v);
    });
    let mut data = Vec::new();
    for site in parcel.sites(spec)? {
        for what in lora::NAMES {
            let name = format!("{site}.{what}");
            let t = tensors
                .get(&name)
                .ok_or_else(|| Error::new(Code::Missing, format!("the module lacks tensor {name}")))?;
            let (ty, &[rows, cols]) = (
                match t.dtype {
                    Dtype::F16 => QuantType::F16,
                    Dtype::F32 => QuantType::F32,
                    other => return Err(Error::new(Code::Type, format!("tensor {name} is {}", other.name()))),
                },
                t.shape.as_slice(),
            ) else {
                return Err(Error::new(Code::Shape, format!("tensor {name} of shape {:?}", t.shape)));
            };
            w.tensor(&name, ty, &[cols as u64, rows as u64]);
            data.push(t.data);
        }
    }
    w.finish(out, |i| Ok(data[i]))
}
