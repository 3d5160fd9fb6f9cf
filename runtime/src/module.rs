//! A PET module ready to be put in force: LoRA factors found in a mapped payload.
//!
//! Nothing is copied and nothing is merged: the factors are read where they lie, and the base
//! never changes. Loading fails unless every declared site exists in the base and every tensor
//! of the payload belongs to a declared site.

use crate::base::Linear;
use crate::error::{Code, Error, Result};
use crate::kernels::{Kernels, LowRank, MatrixRef, low_rank_width};
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
    /// Largest rank.
    rank: usize,
    /// Numbers of scratch space for each token.
    width: usize,
    first_layer: usize,
}

#[derive(Debug, Clone)]
struct Lora {
    rank: usize,
    /// Rows of `B`.
    rows: usize,
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
            if slot.replace(Lora { rank, rows, a: factor(&a)?, b: factor(&b)? }).is_some() {
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
        let width = out.iter().map(layer_width).max().unwrap_or(0);
        Ok(Self { map, scale, sites: out, rank: max_rank, width, first_layer })
    }

    /// Largest rank of any site.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The lowest layer it acts on; `n_layer` if it acts nowhere.
    pub fn first_layer(&self) -> usize {
        self.first_layer
    }

    /// Numbers that [`Module::add`] needs for each token.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// What this module adds to linears of one layer that share the input `x [n, in]`; nothing
    /// where it has no site. `low [>= n * width]` is work space.
    pub(crate) fn add<'m, const P: usize>(
        &'m self,
        (kernels, threads): (Kernels, &Threads),
        (layer, which): (usize, [Linear; P]),
        x: &[f32],
        n: usize,
        low: &'m mut [f32],
    ) -> [Option<LowRank<'m>>; P] {
        let loras = which.map(|w| self.sites[layer][w as usize].as_ref());
        let matrix = |f: &Factor, rows: usize, cols: usize| {
            let data = &self.map[f.bytes.clone()];
            MatrixRef { ty: f.ty, rows, cols, data }
        };
        let there = loras.iter().flatten();
        let pitch = low_rank_width(there.clone().map(|l| l.rank));
        let low = &mut low[..n * pitch];
        if pitch > 0 {
            kernels.project(threads, there.map(|l| matrix(&l.a, l.rank, x.len() / n)), x, low, n);
        }
        let (low, mut at) = (&*low, 0);
        loras.map(|l| {
            let l = l?;
            at += l.rank;
            let b = matrix(&l.b, l.rows, l.rank);
            Some(LowRank { low, pitch, at: at - l.rank, b, scale: self.scale })
        })
    }
}

/// The most that the linears of a layer which share an input need side by side.
fn layer_width(sites: &[Option<Lora>; 7]) -> usize {
    let groups: [&[Linear]; 4] =
        [&[Linear::Q, Linear::K, Linear::V], &[Linear::Output], &[Linear::Gate, Linear::Up], &[Linear::Down]];
    let width =
        |group: &[Linear]| low_rank_width(group.iter().filter_map(|w| sites[*w as usize].as_ref()).map(|l| l.rank));
    groups.into_iter().map(width).max().unwrap_or(0)
}
