//! The modules of a batch, and the tokens that each acts on.
//!
//! The base's own products are taken once for all tokens, whatever modules they belong to. Where one
//! module acts on all of them, what its LoRA adds rides on those products; where there are several,
//! each adds to its own tokens afterwards.

use super::{Row, Scratch, by_token};
use crate::base::{Base, LayerRef, Linear};
use crate::kernels::Kernels;
use crate::module::{Module, Point};
use crate::threads::Threads;
use conpet_formats::pet::Place;
use std::ops::Range;

/// Which modules act on a batch, and where.
pub(super) struct InForce<'a> {
    tokens: usize,
    /// The one that acts on all tokens.
    all: Option<&'a Module>,
    /// Otherwise those that act on some.
    some: Vec<(Range<usize>, &'a Module)>,
}

impl<'a> InForce<'a> {
    pub(super) fn new(rows: &[Row<'a>]) -> Self {
        let tokens = rows.iter().map(|r| r.tokens).sum();
        let same = |a: Option<&Module>, b: Option<&Module>| match (a, b) {
            (Some(a), Some(b)) => std::ptr::eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        };
        if rows.windows(2).all(|w| same(w[0].module, w[1].module)) {
            return Self { tokens, all: rows.first().and_then(|r| r.module), some: Vec::new() };
        }
        let (mut some, mut at): (Vec<(Range<usize>, &Module)>, usize) = (Vec::new(), 0);
        for r in rows {
            let (start, module) = (at, r.module);
            at += r.tokens;
            match (some.last_mut(), module) {
                (Some((range, last)), Some(m)) if std::ptr::eq(*last, m) && range.end == start => range.end = at,
                (_, Some(m)) => some.push((start..at, m)),
                (_, None) => {}
            }
        }
        Self { tokens, all: None, some }
    }

    fn each(&self) -> impl Iterator<Item = (Range<usize>, &'a Module)> {
        self.all.map(|m| (0..self.tokens, m)).into_iter().chain(self.some.iter().cloned())
    }

    /// Computes, at a module's first use, what of it does not depend on the input.
    pub(super) fn prepare(&self, dev: (Kernels, &Threads), base: &Base) {
        self.each().for_each(|(_, m)| m.prepare(dev, base));
    }

    pub(super) fn reserve(&self, hidden: usize, s: &mut Scratch) {
        for (range, m) in self.each() {
            let [low, work] = m.width();
            s.low.reserve(range.len() * low);
            s.work.reserve(range.len() * work);
            s.aside.reserve(if m.aside().is_empty() { 0 } else { self.tokens * hidden });
        }
    }

    /// Whether something runs beside a sublayer.
    pub(super) fn aside(&self, place: Place) -> bool {
        self.each().any(|(_, m)| m.aside().has(place))
    }

    /// Linears of layer `l` that share the input `x [n, in]`, with what LoRAs add to them.
    pub(super) fn linears<const P: usize>(
        &self,
        dev: (Kernels, &Threads),
        (l, w): (usize, &LayerRef<'_>),
        which: [Linear; P],
        x: &[f32],
        mut ys: [&mut [f32]; P],
        low: &mut [f32],
    ) {
        let (kernels, threads) = dev;
        let on = self.all.map_or([None; P], |m| m.add(dev, (l, which), x, self.tokens, low));
        let mut i = 0;
        let parts = ys.each_mut().map(|y| {
            i += 1;
            (w.linear(which[i - 1]), &mut **y, on[i - 1])
        });
        kernels.matmul_many(threads, parts, x, self.tokens);
        for (y, which) in ys.iter_mut().zip(which) {
            if let Some(bias) = w.bias(which) {
                by_token(threads, y, bias.len(), |_, y| kernels.add(y, bias));
            }
        }
        for (range, m) in &self.some {
            let on = m.add(dev, (l, which), self.part(x, range), range.len(), low);
            for (y, add) in ys.iter_mut().zip(on) {
                if let Some(add) = add {
                    kernels.add_low_rank(threads, add, self.part_mut(y, range), range.len());
                }
            }
        }
    }

    /// Lets modules change what flows past a point: `y [n, ..]`, where the linear or sublayer there has
    /// read `x`.
    pub(super) fn act(&self, dev: (Kernels, &Threads), at: (usize, Point), x: &[f32], y: &mut [f32], work: &mut [f32]) {
        for (range, m) in self.each() {
            m.act(dev, at, self.part(x, &range), self.part_mut(y, &range), work);
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
