//! LoRA in force: its factors ride on the base's own products.

use super::act::{Table, Weight};
use super::payload::{Factor, Payload};
use crate::base::Linear;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::kernels::{LowRank, low_rank_width};
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::{Lora as Spec, Part, Site, lora::NAMES};

/// The factors of all sites; none where the module has no LoRA.
#[derive(Debug, Clone)]
pub(super) struct Lora {
    scale: f32,
    sites: Table<Pair>,
    /// Largest rank.
    pub(super) rank: usize,
    /// Numbers of scratch space for each token.
    pub(super) width: usize,
}

#[derive(Debug, Clone)]
struct Pair {
    a: Factor,
    b: Factor,
}

impl Lora {
    pub(super) fn none(n_layer: usize) -> Self {
        Self { scale: 0.0, sites: Table::new(n_layer), rank: 0, width: 0 }
    }

    pub(super) fn load(p: &mut Payload<'_>, (part, spec): (&Part, Spec), sites: &[Site]) -> Result<Self> {
        let mut out = Self { scale: spec.scale() as f32, ..Self::none(p.spec.n_layer) };
        for site in sites.iter().filter(|s| part.acts(p.spec.n_layer, **s)) {
            let shapes = part.tensors(p.spec, site.place);
            let mut factor = |i: usize| p.factor(*site, NAMES[i], &shapes[i].1);
            out.sites.set(*site, Pair { a: factor(0)?, b: factor(1)? });
            out.rank = spec.rank;
        }
        out.width = (0..p.spec.n_layer).map(|l| out.layer_width(l)).max().unwrap_or(0);
        Ok(out)
    }

    fn at(&self, layer: usize, which: Linear) -> Option<&Pair> {
        self.sites.by_index(layer, which as usize)
    }

    /// Whether it has a site at a linear.
    pub(super) fn has(&self, layer: usize, which: Linear) -> bool {
        self.at(layer, which).is_some()
    }

    /// What it adds to linears of one layer that share the input `x [n, in]`, each with its weight;
    /// nothing where it has no site or no weight. `low [>= n * width]` is work space.
    pub(super) fn add<'m, const P: usize>(
        &'m self,
        map: &'m Mapped,
        cpu: &Cpu,
        (layer, which): (usize, [(Linear, Option<Weight<'_>>); P]),
        x: &[f32],
        n: usize,
        low: &'m mut [f32],
    ) -> [Option<LowRank<'m>>; P] {
        let pairs = which.map(|(w, weight)| self.at(layer, w).zip(weight));
        let there = pairs.iter().flatten().map(|(l, _)| *l);
        let pitch = low_rank_width(there.clone().map(|l| l.a.rows()));
        let low = &mut low[..n * pitch];
        if pitch > 0 {
            cpu.kernels.project(&cpu.threads, there.map(|l| l.a.matrix(map)), x, low, n);
        }
        let mut at = 0;
        let scaled = pairs.map(|pair| {
            let (l, weight) = pair?;
            let (from, rank) = (at, l.a.rows());
            at += rank;
            let scale = match weight {
                Weight::Same(w) => self.scale * w,
                // What differs by token multiplies `Ax`, token by token.
                each @ Weight::Each(..) => {
                    low.chunks_exact_mut(pitch).enumerate().for_each(|(t, low)| {
                        low[from..from + rank].iter_mut().for_each(|v| *v *= each.of(t));
                    });
                    self.scale
                }
            };
            Some((l, from, scale))
        });
        let low = &*low;
        scaled.map(|x| x.map(|(l, at, scale)| LowRank { low, pitch, at, b: l.b.matrix(map), scale }))
    }

    /// The most that the linears of a layer which share an input need side by side.
    fn layer_width(&self, layer: usize) -> usize {
        let groups: [&[Linear]; 4] =
            [&[Linear::Q, Linear::K, Linear::V], &[Linear::Output], &[Linear::Gate, Linear::Up], &[Linear::Down]];
        let width = |g: &[Linear]| low_rank_width(g.iter().filter_map(|w| self.at(layer, *w)).map(|l| l.a.rows()));
        groups.into_iter().map(width).max().unwrap_or(0)
    }
}
