//! A PET module ready to be put in force: LoRA factors found in a mapped payload.
//!
//! Nothing is copied and nothing is merged: the factors are read where they lie, and the base
//! never changes. Loading fails unless every declared site exists in the base and every tensor
//! of the payload belongs to a declared site.

use crate::base::Linear;
use crate::error::{Code, Error, Result};
use crate::kernels::{Kernels, MatrixRef};
use crate::threads::Threads;
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::lora;
use conpet_formats::quant::QuantType;
use conpet_formats::tensors::{Dtype, Tensor, Tensors};
use std::ops::Range;

/// A module in memory.
#[derive(Debug, Clone)]
pub struct Module {
    map: Mapped,
    scale: f32,
    /// Per layer, in the order of [`Linear::ALL`].
    sites: Vec<[Option<Lora>; 7]>,
    /// Largest rank, for scratch space.
    rank: usize,
    first_layer: usize,
}

#[derive(Debug, Clone)]
struct Lora {
    rank: usize,
    a: Factor,
    b: Factor,
}

#[derive(Debug, Clone)]
struct Factor {
    ty: QuantType,
    bytes: Range<usize>,
}

/// The layer and linear that a site name means, e.g. `blk.7.attn_q.weight`.
///
/// # Errors
/// If the base has no such linear.
pub fn parse_site(spec: &ModelSpec, site: &str) -> Result<(usize, Linear)> {
    let unknown = || {
        Error::new(Code::Missing, format!("the base has no site {site:?}"))
            .hint("sites are named blk.<layer>.<attn_q|attn_k|attn_v|attn_output|ffn_gate|ffn_up|ffn_down>.weight")
    };
    let mut parts = site.split('.');
    let (Some("blk"), Some(layer), Some(short), Some("weight"), None) =
        (parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(unknown());
    };
    let layer: usize = layer.parse().map_err(|_| unknown())?;
    let which = spec.linears().iter().position(|(name, _, _)| *name == short).ok_or_else(unknown)?;
    if layer >= spec.n_layer {
        return Err(unknown());
    }
    Ok((layer, Linear::ALL[which]))
}

impl Module {
    /// Finds every site's factors in the safetensors payload at `bytes` of `map`.
    ///
    /// # Errors
    /// If a declared site is not in the base, lacks a tensor, or has one of the wrong shape or
    /// type; or if the payload holds a tensor that belongs to no declared site.
    pub fn from_payload(
        map: Mapped,
        bytes: Range<usize>,
        sites: &[String],
        scale: f32,
        spec: &ModelSpec,
    ) -> Result<Self> {
        let base = map.as_ptr() as usize;
        let payload = &map[bytes];
        let tensors = Tensors::parse(payload)?;
        let mut out = vec![[const { None }; 7]; spec.n_layer];
        let (mut used, mut max_rank, mut first_layer) = (0, 0, spec.n_layer);
        for site in sites {
            let (layer, which) = parse_site(spec, site)?;
            let (_, rows, cols) = spec.linears()[which as usize];
            let get = |name: String| -> Result<Tensor<'_>> {
                tensors.get(&name).ok_or_else(|| {
                    Error::new(Code::Missing, format!("the module declares site {site} but has no tensor {name}"))
                })
            };
            let (a, b) = (get(lora::a_name(site))?, get(lora::b_name(site))?);
            let rank = a.shape.first().copied().unwrap_or(0);
            if rank == 0 || a.shape != [rank, cols] || b.shape != [rows, rank] {
                return Err(Error::new(
                    Code::Shape,
                    format!(
                        "factors of shape {:?} and {:?} do not fit site {site} of shape [{rows}, {cols}]",
                        a.shape, b.shape
                    ),
                ));
            }
            let factor = |t: &Tensor<'_>| -> Result<Factor> {
                let ty = match t.dtype {
                    Dtype::F32 => QuantType::F32,
                    Dtype::F16 => QuantType::F16,
                    Dtype::BF16 => QuantType::BF16,
                    other => return Err(Error::new(Code::Type, format!("dtype {other:?} at site {site}"))),
                };
                let start = t.data.as_ptr() as usize - base;
                Ok(Factor { ty, bytes: start..start + t.data.len() })
            };
            let slot: &mut Option<Lora> = &mut out[layer][which as usize];
            if slot.replace(Lora { rank, a: factor(&a)?, b: factor(&b)? }).is_some() {
                return Err(Error::new(Code::Duplicate, format!("site {site} is declared twice")));
            }
            (used, max_rank, first_layer) = (used + 2, max_rank.max(rank), first_layer.min(layer));
        }
        let held = tensors.names().filter(|n| !n.starts_with("__pad")).count();
        if held != used {
            return Err(Error::new(
                Code::Layout,
                format!("the payload holds {held} tensors, but its {} declared sites use {used}", sites.len()),
            )
            .hint("a module is refused rather than applied in part"));
        }
        Ok(Self { map, scale, sites: out, rank: max_rank, first_layer })
    }

    /// Largest rank of any site.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The lowest layer it acts on; `n_layer` if it acts nowhere.
    pub fn first_layer(&self) -> usize {
        self.first_layer
    }

    /// Adds this site's `s·B(Ax)` to `y`; does nothing where the module has no such site.
    ///
    /// `x [n, in]`, `y [n, out]`, `low [>= n * rank]` is scratch.
    pub(crate) fn apply(
        &self,
        (kernels, threads): (Kernels, &Threads),
        (layer, which): (usize, Linear),
        x: &[f32],
        y: &mut [f32],
        n: usize,
        low: &mut [f32],
    ) {
        let Some(l) = &self.sites[layer][which as usize] else { return };
        let low = &mut low[..n * l.rank];
        let a = MatrixRef { ty: l.a.ty, rows: l.rank, cols: x.len() / n, data: &self.map[l.a.bytes.clone()] };
        let b = MatrixRef { ty: l.b.ty, rows: y.len() / n, cols: l.rank, data: &self.map[l.b.bytes.clone()] };
        kernels.matmul(threads, a, x, low, n);
        kernels.matmul_add(threads, b, low, y, n, self.scale);
    }
}
