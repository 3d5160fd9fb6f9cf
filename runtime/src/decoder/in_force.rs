//! The blends of a batch, and the tokens that each acts on.
//!
//! The base's own products are taken once for all tokens, whatever modules they belong to. Where one
//! blend acts on all of them, what its first LoRA adds rides on those products; all others add to their
//! own tokens afterwards.

use crate::aligned::Aligned;
use crate::base::{LayerRef, Linear};
use crate::batch::Span;
use crate::blend::Blend;
use crate::cpu::Cpu;
use crate::module::{Module, PartAt, Weight};
use conpet_formats::pet::{PetKind, Place, Point, Site};
use smallvec::SmallVec;
use std::ops::Range;

/// Work space of what is in force.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// `Ax` of LoRAs.
    low: Aligned<f32>,
    /// What parts compute in.
    part: Aligned<f32>,
    /// What flowed past a point before any of a blend's modules acted.
    before: Aligned<f32>,
    /// Weights that were asked for.
    weights: Aligned<f32>,
}

/// Which blends act on a batch, and where.
pub(super) struct InForce<'a> {
    tokens: usize,
    groups: SmallVec<[Group<'a>; 8]>,
}

/// Neighbouring tokens with one blend in force.
struct Group<'a> {
    range: Range<usize>,
    blend: &'a Blend,
    /// Position of the first token in its sequence.
    first: usize,
}

/// Weights of a blend's modules at one site.
#[derive(Clone, Copy)]
enum Given<'w> {
    /// One for each module, or none where nothing is in force.
    Layer(&'w [f32]),
    /// `[tokens, modules]`.
    Tokens(&'w [f32], usize),
}

impl<'w> Given<'w> {
    /// Of one module; `None` where it is not in force.
    fn of(self, module: usize) -> Option<Weight<'w>> {
        match self {
            Self::Layer(w) => w.get(module).filter(|w| **w != 0.0).map(|w| Weight::Same(*w)),
            Self::Tokens(w, modules) => Some(Weight::Each(&w[module..], modules)),
        }
    }
}

impl<'a> InForce<'a> {
    pub(super) fn new(spans: &[Span<'a>]) -> Self {
        let (mut groups, mut at): (SmallVec<[Group<'a>; 8]>, usize) = (SmallVec::new(), 0);
        for s in spans {
            let (range, blend) = (at..at + s.tokens, s.blend);
            at = range.end;
            match groups.last_mut() {
                // Weights that are asked for depend on the position, so each sequence is asked for alone.
                Some(g) if blend.weigh().is_none() && g.range.end == range.start && g.blend.same(blend) => {
                    g.range.end = at;
                }
                _ if blend.is_none() || range.is_empty() => {}
                _ => groups.push(Group { range, blend, first: s.past() }),
            }
        }
        Self { tokens: at, groups }
    }

    pub(super) fn modules(&self) -> impl Iterator<Item = &'a Module> {
        self.groups.iter().flat_map(|g| g.blend.modules()).map(|m| &**m)
    }

    pub(super) fn reserve(&self, widest: usize, w: &mut Work) {
        for g in &self.groups {
            let (n, modules) = (g.range.len(), g.blend.modules());
            for m in modules {
                let [low, part] = m.width();
                w.low.reserve(n * low);
                w.part.reserve(n * part);
            }
            if modules.len() > 1 && modules.iter().any(|m| m.width()[1] > 0) {
                w.before.reserve(n * widest);
            }
            if g.blend.weigh().is_some() {
                w.weights.reserve(n * modules.len() * MOST_LINEARS);
            }
        }
    }

    /// Whether something runs beside a sublayer.
    pub(super) fn aside(&self, place: Place) -> bool {
        self.modules().any(|m| m.aside(place))
    }

    /// Linears of layer `l` that share the input `x [n, in]`, with what LoRAs add to them.
    pub(super) fn linears<const P: usize>(
        &self,
        cpu: &Cpu,
        (l, w): (usize, &LayerRef<'_>),
        which: [Linear; P],
        x: &[f32],
        mut ys: [&mut [f32]; P],
        work: &mut Work,
    ) {
        const { assert!(P <= MOST_LINEARS) };
        let adds = |m: &Module| which.iter().any(|w| m.adds(l, *w));
        let riding = match self.groups.as_slice() {
            [g] if g.range.len() == self.tokens => g.blend.modules().iter().position(|m| adds(m)).map(|i| (g, i)),
            _ => None,
        };
        let on = riding.map_or([None; P], |(g, i)| {
            let at = g.weights(i, l, which, x, &mut work.weights);
            g.blend.modules()[i].add(cpu, (l, at), x, self.tokens, &mut work.low)
        });
        let mut i = 0;
        let parts = ys.each_mut().map(|y| {
            i += 1;
            (w.linear(which[i - 1]), &mut **y, on[i - 1])
        });
        cpu.kernels.matmul_many(&cpu.threads, parts, x, self.tokens);
        for (y, which) in ys.iter_mut().zip(which) {
            if let Some(bias) = w.bias(which) {
                cpu.by_row(y, bias.len(), |_, y| cpu.kernels.add(y, bias));
            }
        }
        for g in &self.groups {
            for (i, m) in g.blend.modules().iter().enumerate() {
                if !adds(m) || riding.is_some_and(|(_, riding)| riding == i) {
                    continue;
                }
                let x = self.part(x, &g.range);
                let at = g.weights(i, l, which, x, &mut work.weights);
                let on = m.add(cpu, (l, at), x, g.range.len(), &mut work.low);
                for (y, add) in ys.iter_mut().zip(on) {
                    if let Some(add) = add {
                        cpu.kernels.add_low_rank(&cpu.threads, add, self.part_mut(y, &g.range), g.range.len());
                    }
                }
            }
        }
    }

    /// Lets modules change what flows past a point: `y [n, ..]`, where the linear or sublayer there has
    /// read `x`.
    pub(super) fn act(&self, cpu: &Cpu, (l, point): (usize, Point), x: &[f32], y: &mut [f32], work: &mut Work) {
        for g in &self.groups {
            let modules = g.blend.modules();
            if modules.iter().all(|m| m.parts_at(l, point).next().is_none()) {
                continue;
            }
            let (x, y) = (self.part(x, &g.range), self.part_mut(y, &g.range));
            let [given] = g.weights_at([site(l, point)], if x.is_empty() { y } else { x }, &mut work.weights);
            if let [m] = modules {
                let Some(weight) = given.of(0) else { continue };
                m.parts_at(l, point).for_each(|p| p.act(cpu, weight, None, x, y, &mut work.part));
                continue;
            }
            for kind in PetKind::ALL {
                let mine = || {
                    let each = modules.iter().enumerate().filter_map(|(i, m)| Some((given.of(i)?, m)));
                    each.flat_map(|(w, m)| m.parts_at(l, point).map(move |p| (w, p))).filter(|(_, p)| p.kind() == *kind)
                };
                let flow = mine().count() > 1 && mine().any(|(_, p)| PartAt::reads_flow(&p));
                if flow {
                    work.before[..y.len()].copy_from_slice(y);
                }
                let before = flow.then(|| &work.before[..y.len()]);
                mine().for_each(|(weight, p)| p.act(cpu, weight, before, x, y, &mut work.part));
            }
        }
    }

    /// Some tokens' numbers of `x [n, ..]`.
    fn part<'x>(&self, x: &'x [f32], range: &Range<usize>) -> &'x [f32] {
        let width = x.len() / self.tokens;
        &x[range.start * width..range.end * width]
    }

    fn part_mut<'x>(&self, x: &'x mut [f32], range: &Range<usize>) -> &'x mut [f32] {
        let width = x.len() / self.tokens;
        &mut x[range.start * width..range.end * width]
    }
}

/// The site whose weights count at a point.
fn site(layer: usize, point: Point) -> Site {
    let place = match point {
        Point::In(p) | Point::Out(p) | Point::Aside(p) | Point::Add(p) => p,
        Point::Layer => Place::Down,
    };
    Site { layer, place }
}

/// The most linears that share an input.
const MOST_LINEARS: usize = 3;

impl Group<'_> {
    /// Linears of a layer that read `x`, each with a module's weight there.
    fn weights<'w, const P: usize>(
        &'w self,
        module: usize,
        layer: usize,
        which: [Linear; P],
        x: &[f32],
        work: &'w mut [f32],
    ) -> [(Linear, Option<Weight<'w>>); P] {
        let given = self.weights_at(which.map(|w| Site { layer, place: Place::ALL[w as usize] }), x, work);
        std::array::from_fn(|p| (which[p], given[p].of(module)))
    }

    /// Weights of all modules at some sites, where `x` is read or flows.
    fn weights_at<'w, const P: usize>(&'w self, sites: [Site; P], x: &[f32], work: &'w mut [f32]) -> [Given<'w>; P] {
        let Some(by) = self.blend.weigh() else {
            return sites.map(|s| Given::Layer(self.blend.at(s.layer).unwrap_or_default()));
        };
        let modules = self.blend.modules().len();
        let mut rest = work;
        sites.map(|site| {
            let (mine, others) = std::mem::take(&mut rest).split_at_mut(self.range.len() * modules);
            rest = others;
            by.weigh(site, self.first, x, mine);
            Given::Tokens(mine, modules)
        })
    }
}
