//! A module's numbers in training: where each kind starts, what the layers see of them, and what is kept.
//!
//! What is trained has the names and shapes of what is kept, but for a prefix with an MLP, whose
//! weights are trained and whose output is kept (Li & Liang 2021, section 4.3).

pub mod choose;

use crate::fit::Trained;
use crate::rng::Stream;
use candle_core::{Result, Tensor, Var};
use conpet_formats::pet::{Part, Pet, PetSpec, Prefix, Site, adapter, lora, prefix, sparse};
use conpet_formats::tensors::TensorsWriter;
use conpet_runtime::base::Base;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Positions of a sparse delta, by full tensor name.
pub type Indices = BTreeMap<String, Arc<Vec<i32>>>;

/// A number tensor before training.
#[derive(Debug, Clone, PartialEq)]
pub struct Fresh {
    /// Full name.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Numbers.
    pub values: Vec<f32>,
}

/// Weights of a prefix's MLP: `P = W₂ tanh(W₁ e + b₁) + b₂` for each row e.
const MLP: [&str; 5] = ["prefix.rows", "prefix.w1", "prefix.b1", "prefix.w2", "prefix.b2"];

/// Where training starts. Every kind but prefix and prompt starts as no change at all.
///
/// LoRA's A and an adapter's D are uniform in ±1/√in (kaiming-uniform with a = √5, as in PEFT and
/// the published code), a prompt's rows are embeddings of tokens drawn at random (Lester et al. 2021),
/// learned keys and values are uniform in ±0.5. `known` tells what the job starts from instead.
pub fn fresh(
    base: &Base,
    pet: &PetSpec,
    sites: &[Site],
    indices: &Indices,
    (seed, name): (u64, &str),
    known: impl Fn(&str) -> bool,
) -> Vec<Fresh> {
    let spec = &base.spec;
    let mut out = Vec::new();
    for part in pet.parts() {
        let here: Vec<Site> = sites.iter().copied().filter(|s| part.acts(spec.n_layer, *s)).collect();
        let known = || here.iter().all(|s| known(&format!("{s}.{}", prefix::PAIRS)));
        if let Some(p) = reparameterised(part).filter(|_| !here.is_empty() && !known()) {
            out.extend(mlp(p, here.len() * spec.kv_dim(), (seed, name)));
            continue;
        }
        for site in here {
            for (suffix, shape) in tensors(part, base, site, indices) {
                let rng = Stream::new(seed, &format!("{name}/init/{site}"), 0);
                let values = start(base, suffix, &shape, rng);
                out.push(Fresh { name: format!("{site}.{suffix}"), shape, values });
            }
        }
    }
    out
}

fn tensors(part: &Part, base: &Base, site: Site, indices: &Indices) -> Vec<(&'static str, Vec<usize>)> {
    if let Pet::Sparse(_) = part.pet {
        let chosen = indices.get(&format!("{site}.{}", sparse::NAMES[0]));
        return chosen.map(|i| (sparse::NAMES[1], vec![i.len()])).into_iter().collect();
    }
    part.tensors(&base.spec, site.place)
}

fn start(base: &Base, suffix: &str, shape: &[usize], mut rng: Stream) -> Vec<f32> {
    let n: usize = shape.iter().product();
    match suffix {
        _ if suffix == lora::NAMES[0] || suffix == adapter::NAMES[0] => {
            rng.symmetric(n, 1.0 / (shape[1] as f32).sqrt())
        }
        prefix::PAIRS => rng.symmetric(n, 0.5),
        conpet_formats::pet::prompt::ROWS => {
            let mut rows = vec![0.0; n];
            for row in rows.chunks_exact_mut(shape[1]) {
                let token = rng.below(base.spec.vocab);
                conpet_runtime::kernels::Kernels::detect().dequantize_row(base.embedding(), token, row);
                row.iter_mut().for_each(|v| *v *= base.spec.embedding_scale);
            }
            rows
        }
        _ => vec![0.0; n],
    }
}

fn reparameterised(part: &Part) -> Option<Prefix> {
    match part.pet {
        Pet::Prefix(p) if p.mid > 0 => Some(p),
        _ => None,
    }
}

fn mlp(p: Prefix, out: usize, (seed, name): (u64, &str)) -> Vec<Fresh> {
    let shapes = [vec![p.pairs, p.mid], vec![p.mid, p.mid], vec![p.mid], vec![out, p.mid], vec![out]];
    let mut rng = Stream::new(seed, &format!("{name}/init/prefix"), 0);
    let bounds = [1.0, 1.0 / (p.mid as f32).sqrt(), 0.0, 1.0 / (p.mid as f32).sqrt(), 0.0];
    let each = MLP.into_iter().zip(shapes).zip(bounds);
    each.map(|((name, shape), bound)| Fresh {
        values: rng.symmetric(shape.iter().product(), bound),
        name: name.into(),
        shape,
    })
    .collect()
}

/// The variables as tensors, with what a prefix's MLP makes of its weights in the place of these.
///
/// # Errors
/// If the MLP cannot be computed.
pub fn in_force(
    pet: &PetSpec,
    base: &Base,
    sites: &[Site],
    vars: &BTreeMap<String, Var>,
) -> Result<BTreeMap<String, Tensor>> {
    let others = vars.iter().filter(|(name, _)| !MLP.contains(&name.as_str()));
    let mut out: BTreeMap<String, Tensor> = others.map(|(name, v)| (name.clone(), v.as_tensor().clone())).collect();
    if let [Some(rows), Some(w1), Some(b1), Some(w2), Some(b2)] = MLP.map(|n| vars.get(n).map(|v| v.as_tensor())) {
        let mid = rows.matmul(&w1.t()?)?.broadcast_add(b1)?.tanh()?;
        let all = mid.matmul(&w2.t()?)?.broadcast_add(b2)?;
        let width = base.spec.kv_dim();
        let part = pet.parts().iter().find(|p| reparameterised(p).is_some());
        let here = sites.iter().filter(|s| part.is_some_and(|p| p.acts(base.spec.n_layer, **s)));
        for (i, site) in here.enumerate() {
            out.insert(format!("{site}.{}", prefix::PAIRS), all.narrow(1, i * width, width)?.contiguous()?);
        }
    }
    Ok(out)
}

/// Whether a trained tensor is the module's, by its name: the others are the head's and a recipe's own.
pub fn is_module(name: &str) -> bool {
    name.starts_with("blk.") || name.starts_with("token_embd.")
}

/// A module's payload, and how many numbers were trained for it.
///
/// # Errors
/// If a number cannot be stored.
pub fn payload(trained: &Trained) -> conpet_formats::Result<(Vec<u8>, usize)> {
    let (mut w, mut numbers) = (TensorsWriter::new(), 0);
    for (name, (shape, v)) in trained.tensors.iter().filter(|(n, _)| is_module(n)) {
        w.add_f16(name, shape, v)?;
        numbers += v.len();
    }
    for (name, index) in &trained.indices {
        w.add_i32(name, &[index.len()], index)?;
    }
    Ok((w.finish()?, numbers))
}

/// Those of the sites that the module has something at: a sparse delta may have nothing at some.
pub fn held(trained: &Trained, sites: &[String]) -> Vec<String> {
    let at = |s: &&String| {
        trained.tensors.keys().any(|n| n.strip_prefix(s.as_str()).is_some_and(|rest| rest.starts_with('.')))
    };
    sites.iter().filter(at).cloned().collect()
}
