//! A PET module ready to be put in force: what acts where, found in a mapped payload.
//!
//! Nothing is merged: factors are read where they lie, and the base never changes. Loading fails unless
//! every declared site exists in the base, every part of the module has its tensors there, and every
//! tensor of the payload belongs to a declared site.
//!
//! The forward pass asks a module at a few places: `Module::add` at a product (LoRA, which rides on it),
//! `Module::act` at the `Point`s of a layer (all kinds that change what flows by), and
//! `Module::learned` in attention. A kind is one file here, and one line in [`Module::load`].

mod adapter;
mod bias;
mod ia3;
mod lora;
mod payload;
mod prefix;
mod prompt;
mod sparse;

pub(crate) use prefix::Learned;

use crate::base::{Base, Linear};
use crate::error::{Code, Error, Result};
use crate::kernels::{Kernels, LowRank};
use crate::threads::Threads;
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Pet, PetSpec, Place, Places, Site};
use payload::{Factor, Payload};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// A module in memory.
#[derive(Debug, Clone)]
pub struct Module {
    map: Mapped,
    lora: lora::Lora,
    /// In the order in which they act.
    parts: Vec<Arc<dyn Act>>,
    prefix: Option<prefix::Prefix>,
    prompt: Option<prompt::Prompt>,
    /// Numbers of a head, and key/value heads.
    heads: (usize, usize),
    first_layer: usize,
}

/// A point of a layer, `m = x + attn(norm x)`, `y = m + ffn(norm m)`. Attention goes by its last linear
/// [`Place::Output`], the feed-forward layer by [`Place::Down`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Point {
    /// What a linear is about to read.
    In(Place),
    /// What a linear or a norm has given.
    Out(Place),
    /// Beside a sublayer: zeros, to which is added what joins its result.
    Aside(Place),
    /// What a sublayer is about to add.
    Add(Place),
    /// What leaves the layer.
    Layer,
}

/// Where and with what a part acts.
pub(crate) struct At<'a> {
    kernels: Kernels,
    threads: &'a Threads,
    map: &'a Mapped,
    layer: usize,
}

impl At<'_> {
    /// A vector's numbers, decoded into `work`.
    fn numbers<'w>(&self, f: &Factor, work: &'w mut [f32]) -> &'w [f32] {
        let m = f.matrix(self.map);
        let out = &mut work[..m.cols];
        self.kernels.dequantize_row(m, 0, out);
        out
    }
}

/// A part of a module that changes what flows past a point.
trait Act: Debug + Send + Sync {
    /// Changes `y [n, ..]` where it acts at `point`; `x` is what the linear or the sublayer there has
    /// read. `work [>= n * self.work()]`.
    fn act(&self, at: &At<'_>, point: Point, x: &[f32], y: &mut [f32], work: &mut [f32]);

    /// Numbers of work space for each token.
    fn work(&self) -> usize {
        0
    }

    /// Sublayers beside which it runs.
    fn aside(&self) -> Places {
        Places::default()
    }
}

/// Something for each site of a base, found by layer and place.
#[derive(Debug, Clone)]
struct Table<T>(Vec<[Option<T>; 9]>);

impl<T> Table<T> {
    fn new(n_layer: usize) -> Self {
        Self((0..n_layer).map(|_| [const { None }; 9]).collect())
    }

    fn set(&mut self, site: Site, value: T) {
        self.0[site.layer][site.place as usize] = Some(value);
    }

    fn get(&self, layer: usize, place: Place) -> Option<&T> {
        self.by_index(layer, place as usize)
    }

    fn by_index(&self, layer: usize, index: usize) -> Option<&T> {
        self.0[layer][index].as_ref()
    }
}

/// Runs `f` on each token's numbers, on several threads where that is worth it.
fn tokens(threads: &Threads, data: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    crate::forward::by_token(threads, data, width, f);
}

impl Module {
    /// Hooks every site of the safetensors payload at `bytes` of `map`.
    ///
    /// # Errors
    /// If a declared site is not in the base, no part of `pet` acts there, or a part lacks a tensor
    /// there or has one of the wrong shape or type; or if the payload holds a tensor that belongs to no
    /// declared site.
    pub fn load(map: Mapped, bytes: Range<usize>, sites: &[String], pet: &PetSpec, spec: &ModelSpec) -> Result<Self> {
        let mut at: Vec<Site> = sites.iter().map(|s| Site::parse(spec, s)).collect::<Result<_>>()?;
        at.sort();
        if let Some(w) = at.windows(2).find(|w| w[0] == w[1]) {
            return Err(Error::new(Code::Duplicate, format!("site {} is declared twice", w[0])));
        }
        if let Some(s) = at.iter().find(|s| !pet.parts().iter().any(|p| p.acts(spec.n_layer, **s))) {
            return Err(Error::new(Code::Layout, format!("nothing of {pet} acts at the declared site {s}")));
        }
        let mut p = Payload::new(&map, bytes, spec)?;
        let mut out = Self {
            lora: lora::Lora::none(spec.n_layer),
            parts: Vec::new(),
            prefix: None,
            prompt: None,
            heads: (spec.head_dim, spec.n_kv_head),
            first_layer: at.iter().map(|s| s.layer).min().unwrap_or(spec.n_layer),
            map: map.clone(),
        };
        for part in pet.parts() {
            let before = p.used();
            match part.pet {
                Pet::Lora(x) => out.lora = lora::Lora::load(&mut p, (part, x), &at)?,
                Pet::Sparse(x) => out.parts.push(Arc::new(sparse::Sparse::load(&mut p, &map, (part, x), &at)?)),
                Pet::Ia3(_) => out.parts.push(Arc::new(ia3::Ia3::load(&mut p, part, &at)?)),
                Pet::Bias(_) => out.parts.push(Arc::new(bias::Bias::load(&mut p, part, &at)?)),
                Pet::Adapter(x) => out.parts.push(Arc::new(adapter::Adapter::load(&mut p, (part, x), &at)?)),
                Pet::Prefix(x) => out.prefix = Some(prefix::Prefix::load(&mut p, (part, x.pairs), &at)?),
                Pet::Prompt(_) => out.prompt = Some(prompt::Prompt::load(&mut p, part)?),
            }
            if p.used() == before {
                let name = part.pet.kind().name();
                return Err(Error::new(Code::Missing, format!("the module is {pet}, but declares no site for {name}")));
            }
        }
        if let Some(s) = at.iter().find(|s| !p.used_at(**s)) {
            return Err(Error::new(Code::Missing, format!("the module declares site {s} but has no tensor there"))
                .hint("a module is refused rather than applied in part"));
        }
        p.finish(sites.len())?;
        Ok(out)
    }

    /// Largest rank of any LoRA site; 0 without a LoRA.
    pub fn rank(&self) -> usize {
        self.lora.rank
    }

    /// The lowest layer it acts on; `n_layer` if it acts nowhere.
    pub fn first_layer(&self) -> usize {
        self.first_layer
    }

    /// Numbers that [`Module::add`] and that [`Module::act`] need for each token.
    pub(crate) fn width(&self) -> [usize; 2] {
        [self.lora.width, self.parts.iter().map(|p| p.work()).max().unwrap_or(0)]
    }

    /// What its LoRA adds to linears of one layer that share the input `x [n, in]`; nothing
    /// where it has no site. `low [>= n * width]` is work space.
    pub(crate) fn add<'m, const P: usize>(
        &'m self,
        dev: (Kernels, &Threads),
        at: (usize, [Linear; P]),
        x: &[f32],
        n: usize,
        low: &'m mut [f32],
    ) -> [Option<LowRank<'m>>; P] {
        self.lora.add(&self.map, dev, at, x, n, low)
    }

    /// Changes what flows past a point: `y [n, ..]`, where the linear or sublayer there has read `x`.
    pub(crate) fn act(
        &self,
        (kernels, threads): (Kernels, &Threads),
        (layer, point): (usize, Point),
        x: &[f32],
        y: &mut [f32],
        work: &mut [f32],
    ) {
        let at = At { kernels, threads, map: &self.map, layer };
        self.parts.iter().for_each(|p| p.act(&at, point, x, y, work));
    }

    /// Sublayers beside which something runs.
    pub(crate) fn aside(&self) -> Places {
        self.parts.iter().map(|p| p.aside()).find(|p| !p.is_empty()).unwrap_or_default()
    }

    /// Learned keys and values of a layer.
    pub(crate) fn learned(&self, layer: usize) -> Option<Learned<'_>> {
        let prompt = self.prompt.as_ref().and_then(|p| p.learned(layer, self.heads));
        prompt.or_else(|| self.prefix.as_ref().and_then(|p| p.learned(&self.map, layer, self.heads.1)))
    }

    /// Positions before the sequence's first token.
    pub(crate) fn positions(&self) -> usize {
        self.prompt.as_ref().map_or(0, prompt::Prompt::positions)
    }

    /// Computes, at its first use, what of the module does not depend on the input.
    pub(crate) fn prepare(&self, dev: (Kernels, &Threads), base: &Base) {
        if let Some(p) = &self.prompt {
            p.prepare(dev, base, self);
        }
    }
}
