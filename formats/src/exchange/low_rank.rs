//! LoRA factors of other programs, which may have a rank and a scale of their own at each site, as the
//! one rank and one scale of a module.

use super::Parcel;
use crate::model_spec::ModelSpec;
use crate::pet::{Kind, Lora, PetSpec, Site, lora};
use crate::{Code, Error, Result};
use std::collections::BTreeMap;

/// How many times larger a module may become where zeros fill up smaller ranks.
const FILL_CAP: usize = 16;

/// The factors at a site: `y += scale · B(Ax)`, `a [rank, in]`, `b [out, rank]`.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) a: Vec<f32>,
    pub(super) b: Vec<f32>,
    pub(super) rank: usize,
    pub(super) scale: f64,
}

/// Pairs being put together from tensors that come in any order.
#[derive(Debug, Default)]
pub(super) struct Halves(BTreeMap<Site, [Option<(Vec<usize>, Vec<f32>)>; 2]>);

impl Halves {
    /// Takes A (0) or B (1) of a site.
    pub(super) fn add(&mut self, site: Site, which: usize, shape: Vec<usize>, values: Vec<f32>) -> Result<()> {
        match self.0.entry(site).or_default()[which].replace((shape, values)) {
            None => Ok(()),
            Some(_) => Err(Error::new(Code::Duplicate, format!("two tensors are {} of {site}", ["A", "B"][which]))),
        }
    }

    /// The pairs, each of which must be whole and fit the base; `scale` by site and rank.
    ///
    /// # Errors
    /// Names the site and what is missing or does not fit.
    pub(super) fn pairs(
        self,
        spec: &ModelSpec,
        mut scale: impl FnMut(Site, usize) -> Result<f64>,
    ) -> Result<BTreeMap<Site, Pair>> {
        if self.0.is_empty() {
            return Err(
                Error::new(Code::Missing, "the adapter has no LoRA tensor").hint("the file may be cut or empty")
            );
        }
        let mut out = BTreeMap::new();
        for (site, [a, b]) in self.0 {
            let lacks = |what: &str| {
                Error::new(Code::Missing, format!("site {site} has no {what}"))
                    .hint("the adapter is incomplete; save or copy it again")
            };
            let (sa, a) = a.ok_or_else(|| lacks("A"))?;
            let (sb, b) = b.ok_or_else(|| lacks("B"))?;
            let (rows, input) = site.place.shape(spec);
            let (&[rank, width], &[height, inner]) = (sa.as_slice(), sb.as_slice()) else {
                return Err(Error::new(Code::Shape, format!("A {sa:?} and B {sb:?} of {site} are not matrices")));
            };
            if width != input || height != rows {
                let want = format!("A [r, {input}] and B [{rows}, r]");
                return Err(super::misfit(&site.to_string(), if width == input { &sb } else { &sa }, &want));
            }
            if rank != inner || rank == 0 {
                return Err(Error::new(
                    Code::Shape,
                    format!("A {sa:?} and B {sb:?} of {site} have different ranks, or none"),
                ));
            }
            out.insert(site, Pair { a, b, rank, scale: scale(site, rank)? });
        }
        Ok(out)
    }
}

/// The module: ranks filled up with zeros to the largest, scales that differ from `usual`'s multiplied
/// into B.
///
/// # Errors
/// If a rank or scale is out of bounds.
pub(super) fn parcel(pairs: BTreeMap<Site, Pair>, usual: Lora) -> Result<Parcel> {
    let rank = pairs.values().map(|p| p.rank).max().unwrap_or(0);
    let lora = if rank == usual.rank { usual } else { usual.of_rank(rank) };
    lora.check()?;
    let scale = lora.scale();
    // The manifest writes nine decimals.
    if lora.alpha >= 1e9 || (format!("{:.9}", lora.alpha).parse::<f64>().unwrap_or(0.0) / lora.alpha - 1.0).abs() > 1e-6
    {
        return Err(Error::new(Code::Value, format!("LoRA alpha {} is beyond what a manifest can say", lora.alpha)));
    }
    let size = |p: &Pair| p.a.len() + p.b.len();
    let (has, filled) = pairs.values().fold((0, 0), |(h, f), p| (h + size(p), f + size(p) / p.rank * rank));
    if filled > has.saturating_mul(FILL_CAP) {
        return Err(Error::new(
            Code::Cap,
            format!("{has} parameters would become {filled} at the largest rank, {rank}, which is more than {FILL_CAP} times as many"),
        )
        .hint("a module has one rank; import an adapter whose ranks are closer together"));
    }
    let mut tensors = BTreeMap::new();
    let (mut padded, mut folded) = (0, 0);
    for (site, p) in pairs {
        let (mut a, mut b) = (p.a, p.b);
        let (rows, input) = (b.len() / p.rank, a.len() / p.rank);
        if p.rank < rank {
            padded += 1;
            a.resize(rank * input, 0.0);
            b = b
                .chunks_exact(p.rank)
                .flat_map(|r| r.iter().copied().chain(std::iter::repeat_n(0.0, rank - p.rank)))
                .collect();
        }
        if (p.scale / scale - 1.0).abs() > 1e-9 {
            folded += 1;
            b.iter_mut().for_each(|v| *v = (f64::from(*v) * (p.scale / scale)) as f32);
        }
        let name = site.to_string();
        tensors.insert(lora::a_name(&name), (vec![rank, input], a));
        tensors.insert(lora::b_name(&name), (vec![rows, rank], b));
    }
    let mut parcel = Parcel::new(PetSpec::lora(lora), tensors)?;
    for (n, what) in [
        (padded, format!("have a rank below {rank}; zeros fill them up, which changes nothing")),
        (folded, format!("have another scale than {scale}; it is multiplied into their B")),
    ] {
        if n > 0 {
            parcel.notes.push(format!("{n} of {} sites {what}", parcel.sites.len()));
        }
    }
    Ok(parcel)
}
