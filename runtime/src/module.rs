//! A PET module in memory, ready to be put in force: its parts and the sites where they act, read from a mapped
//! payload.
//!
//! Nothing is merged: tensors are read where they lie in the map, and the base never changes. Loading fails
//! unless every declared site exists in the base, every part of the module has its tensors there, and every
//! tensor of the payload belongs to a declared site.
//!
//! The decoder calls a module at a few places: `Module::add` at a product (LoRA, which is added as the product
//! is computed), `Module::parts_at` at the points of a layer (kinds that change activations), and
//! `Module::learned` in attention. A kind is one file here, and one line in [`Module::load`].

mod act;
mod adapter;
mod bias;
mod ia3;
mod lora;
mod payload;
mod prefix;
mod prompt;
mod sparse;

pub(crate) use act::Weight;
pub(crate) use prefix::Learned;

use crate::base::Linear;
use crate::cpu::Cpu;
use crate::error::{Code, Error, Result};
use crate::kernels::{Kernels, LowRank};
use crate::kv::Kv;
use act::{Act, At};
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Pet, PetKind, PetSpec, Place, Point, Site};
use payload::Payload;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Identifies a module within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ModuleId(u64);

impl ModuleId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A module in memory.
#[derive(Debug, Clone)]
pub struct Module {
    id: ModuleId,
    map: Mapped,
    lora: lora::Lora,
    pet: PetSpec,
    /// The parts that change activations at points, in the order in which they act.
    parts: Vec<(Pet, Arc<dyn Act>)>,
    prefix: Option<prefix::Prefix>,
    prompt: Option<prompt::PromptRows>,
    /// Head size, and number of key/value heads.
    heads: (usize, usize),
    n_layer: usize,
    hidden: usize,
    first_layer: usize,
}

impl Module {
    /// Loads the safetensors payload at `bytes` of `map`, with every declared site.
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
            id: ModuleId::next(),
            lora: lora::Lora::none(spec.n_layer),
            pet: pet.clone(),
            parts: Vec::new(),
            prefix: None,
            prompt: None,
            heads: (spec.head_dim, spec.n_kv_head),
            n_layer: spec.n_layer,
            hidden: spec.hidden,
            first_layer: at.iter().map(|s| s.layer).min().unwrap_or(spec.n_layer),
            map: map.clone(),
        };
        for part in pet.parts() {
            let before = p.used();
            let act: Option<Arc<dyn Act>> = match part.pet {
                Pet::Lora(x) => {
                    out.lora = lora::Lora::load(&mut p, (part, x), &at)?;
                    None
                }
                Pet::Sparse(x) => Some(Arc::new(sparse::Sparse::load(&mut p, &map, (part, x), &at)?)),
                Pet::Ia3(_) => Some(Arc::new(ia3::Ia3::load(&mut p, part, &at)?)),
                Pet::Bias(_) => Some(Arc::new(bias::Bias::load(&mut p, part, &at)?)),
                Pet::Adapter(x) => Some(Arc::new(adapter::Adapter::load(&mut p, (part, x), &at)?)),
                Pet::Prefix(x) => {
                    out.prefix = Some(prefix::Prefix::load(&mut p, (part, x.pairs), &at)?);
                    None
                }
                Pet::Prompt(_) => {
                    out.prompt = Some(prompt::PromptRows::load(&mut p, part)?);
                    None
                }
            };
            out.parts.extend(act.map(|a| (part.pet, a)));
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

    /// Its identity: clones share it, a module loaded again has another.
    pub fn id(&self) -> ModuleId {
        self.id
    }

    /// Largest rank of any LoRA site; 0 without a LoRA.
    pub fn rank(&self) -> usize {
        self.lora.rank
    }

    /// The lowest layer it acts on; `n_layer` if it acts nowhere.
    pub fn first_layer(&self) -> usize {
        self.first_layer
    }

    /// The module's spec.
    pub fn pet(&self) -> &PetSpec {
        &self.pet
    }

    /// Work space that [`Module::add`] and its parts need for each token, in values.
    pub(crate) fn width(&self) -> [usize; 2] {
        [self.lora.width, self.parts.iter().map(|(_, act)| act.work()).max().unwrap_or(0)]
    }

    /// Whether its LoRA has a site at a linear.
    pub(crate) fn adds(&self, layer: usize, which: Linear) -> bool {
        self.lora.has(layer, which)
    }

    /// What its LoRA adds to linears of one layer that share the input `x [n, in]`, given with their weights;
    /// `None` for a linear without a site. `low [>= n * width]` is work space.
    pub(crate) fn add<'m, const P: usize>(
        &'m self,
        cpu: &Cpu,
        at: (usize, [(Linear, Option<Weight<'_>>); P]),
        x: &[f32],
        n: usize,
        low: &'m mut [f32],
    ) -> [Option<LowRank<'m>>; P] {
        self.lora.add(&self.map, cpu, at, x, n, low)
    }

    /// Its parts that act at a point of a layer, in order: each changes `y [n, ..]`, the output of a linear or
    /// sublayer that read `x`.
    pub(crate) fn parts_at(&self, layer: usize, point: Point) -> impl Iterator<Item = PartAt<'_>> {
        self.parts.iter().filter_map(move |(pet, act)| {
            let place = pet.acts_at(point).filter(|place| act.has(layer, *place))?;
            Some(PartAt { kind: pet.kind(), act: &**act, map: &self.map, layer, place })
        })
    }

    /// Whether something runs beside a sublayer, in any layer.
    pub(crate) fn aside(&self, place: Place) -> bool {
        self.parts.iter().any(|(pet, _)| pet.acts_at(Point::Aside(place)).is_some())
    }

    /// Learned keys and values of a layer.
    pub(crate) fn learned(&self, layer: usize) -> Option<Learned<'_>> {
        let prompt = self.prompt.as_ref().and_then(|p| p.learned(layer, self.heads));
        prompt.or_else(|| self.prefix_pairs(layer))
    }

    fn prefix_pairs(&self, layer: usize) -> Option<Learned<'_>> {
        self.prefix.as_ref().and_then(|p| p.learned(&self.map, layer, self.heads.1))
    }

    /// Positions before the sequence's first token.
    pub(crate) fn positions(&self) -> usize {
        self.prompt.as_ref().map_or(0, prompt::PromptRows::positions)
    }

    /// Computes, at its first use, the part of the module that does not depend on the input: `run` takes
    /// learned rows `[n, hidden]` through all layers with the given module in force.
    pub(crate) fn prepare(&self, kernels: Kernels, run: impl FnOnce(Self, usize, &mut [f32]) -> Kv) {
        let Some(rows) = &self.prompt else { return };
        // The rows' own keys and values do not exist until they have run.
        let others = || Self { prompt: None, ..self.clone() };
        let shape = (self.n_layer, self.hidden);
        rows.prepare(&self.map, kernels, shape, |l| self.prefix_pairs(l), |n, states| run(others(), n, states));
    }
}

/// A part of a module where it acts.
#[derive(Clone, Copy)]
pub(crate) struct PartAt<'m> {
    kind: PetKind,
    act: &'m dyn Act,
    map: &'m Mapped,
    layer: usize,
    place: Place,
}

impl PartAt<'_> {
    pub(crate) fn kind(&self) -> PetKind {
        self.kind
    }

    /// Whether its change depends on the activations there.
    pub(crate) fn reads_flow(&self) -> bool {
        self.act.reads_flow()
    }

    /// Changes `y [n, ..]`; `before` holds the activations before any module of the blend acted, if they may
    /// differ from `y`.
    pub(crate) fn act(
        &self,
        cpu: &Cpu,
        weight: Weight<'_>,
        before: Option<&[f32]>,
        x: &[f32],
        y: &mut [f32],
        work: &mut [f32],
    ) {
        let at = At { cpu, map: self.map, layer: self.layer, weight, before };
        self.act.act(&at, self.place, x, y, work);
    }
}
