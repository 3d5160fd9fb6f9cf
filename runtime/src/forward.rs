//! The decoder: its layers over a ragged batch.
//!
//! A batch is the tokens of several sequences one after another, `hidden [tokens, hidden]`,
//! without padding. Weights are read once per batch. A sequence either has a [`Kv`] cache and
//! continues it, or has none and attends to itself only (one-shot: classification, features).

mod in_force;

use crate::aligned::Aligned;
use crate::attention::attention;
use crate::base::{Base, Linear};
use crate::kernels::Kernels;
use crate::kv::Kv;
use crate::module::{Module, Point};
use crate::threads::Threads;
use conpet_formats::model_spec::{ModelSpec, Rope};
use conpet_formats::pet::Place;
use in_force::InForce;
use std::ops::Range;

/// One sequence of a batch.
#[derive(Debug)]
pub struct Row<'a> {
    /// New tokens of this sequence in the batch.
    pub tokens: usize,
    /// Its cache, if it continues one; grows by `tokens`.
    pub kv: Option<&'a mut Kv>,
    /// The module in force for it.
    pub module: Option<&'a Module>,
}

/// Work space of a forward pass, kept between passes so that decoding allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    norm: Aligned<f32>,
    q: Aligned<f32>,
    k: Aligned<f32>,
    v: Aligned<f32>,
    attn: Aligned<f32>,
    gate: Aligned<f32>,
    up: Aligned<f32>,
    low: Aligned<f32>,
    /// What a module's parts compute in, and what they give beside a sublayer.
    work: Aligned<f32>,
    aside: Aligned<f32>,
    /// Tables of the batch's tokens for each rotary embedding of the base.
    rope: Vec<Aligned<f32>>,
}

impl Scratch {
    fn reserve(&mut self, spec: &ModelSpec, n: usize) {
        self.norm.reserve(n * spec.hidden);
        self.q.reserve(n * spec.q_dim());
        self.k.reserve(n * spec.kv_dim());
        self.v.reserve(n * spec.kv_dim());
        self.attn.reserve(n * spec.q_dim());
        self.gate.reserve(n * spec.ffn);
        self.up.reserve(n * spec.ffn);
        self.rope.resize_with(spec.ropes.len(), Aligned::default);
        self.rope.iter_mut().zip(&spec.ropes).for_each(|(table, rope)| table.reserve(n * rope.dim));
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        let own = [&self.norm, &self.q, &self.k, &self.v, &self.attn, &self.gate, &self.up];
        own.into_iter().chain([&self.low, &self.work, &self.aside]).chain(&self.rope).map(Aligned::bytes).sum()
    }
}

/// Cosines and sines of the rotary embedding at `position` (Su et al. 2021):
/// `out[2i], out[2i+1] = cos, sin of position · base^(-2i / rope_dim)`, `out [rope_dim]`.
pub fn rope_table(base: f32, position: usize, out: &mut [f32]) {
    let dim = out.len() as f64;
    for (i, pair) in out.chunks_exact_mut(2).enumerate() {
        let freq = f64::from(base).powf(-2.0 * i as f64 / dim);
        let (sin, cos) = (position as f64 * freq).sin_cos();
        pair[0] = cos as f32;
        pair[1] = sin as f32;
    }
}

/// Runs `layers` over the batch in place.
///
/// `hidden [tokens, hidden]` holds the states that have passed `layers.start` layers, and
/// afterwards those that have passed `layers.end`. `observe(l, hidden)` is called after each
/// layer with the number of layers passed.
///
/// # Panics
/// If `hidden` does not hold the rows' tokens.
pub fn layers(
    (kernels, threads): (Kernels, &Threads),
    base: &Base,
    layers: Range<usize>,
    rows: &mut [Row<'_>],
    hidden: &mut [f32],
    s: &mut Scratch,
    observe: &mut dyn FnMut(usize, &[f32]),
) {
    let spec = &base.spec;
    let n: usize = rows.iter().map(|r| r.tokens).sum();
    assert_eq!(hidden.len(), n * spec.hidden, "hidden must hold every token of the batch");
    if n == 0 {
        return;
    }
    let dev = (kernels, threads);
    let modules = InForce::new(rows);
    modules.prepare(dev, base);
    s.reserve(spec, n);
    modules.reserve(spec.hidden, s);
    for (rope, table) in spec.ropes.iter().zip(&mut s.rope) {
        turns(threads, *rope, rows, &mut table[..n * rope.dim]);
    }
    let (qd, kd) = (spec.q_dim(), spec.kv_dim());
    let [beside_attn, beside_ffn] = [Place::Output, Place::Down].map(|place| modules.aside(place));
    for l in layers {
        let act = |point: Point, x: &[f32], y: &mut [f32], work: &mut [f32]| modules.act(dev, (l, point), x, y, work);
        let w = base.layer(l);
        let x = &mut s.norm[..n * spec.hidden];
        let (q, k, v) = (&mut s.q[..n * qd], &mut s.k[..n * kd], &mut s.v[..n * kd]);
        normalise(dev, hidden, w.attn_norm, spec, x);
        act(Point::Out(Place::AttnNorm), hidden, x, &mut s.work);
        let which = [Linear::Q, Linear::K, Linear::V];
        modules.linears(dev, (l, &w), which, x, [&mut *q, &mut *k, &mut *v], &mut s.low);
        for (place, y) in [(Place::Q, &mut *q), (Place::K, &mut *k), (Place::V, &mut *v)] {
            act(Point::Out(place), x, y, &mut s.work);
        }
        if beside_attn {
            s.aside[..x.len()].fill(0.0);
            act(Point::Aside(Place::Output), x, &mut s.aside[..x.len()], &mut s.work);
        }
        if let Some(norms) = w.qk_norm {
            for (x, norm) in [&mut *q, &mut *k].into_iter().zip(norms) {
                by_token(threads, x, spec.head_dim, |_, x| kernels.rms_norm_inplace(x, norm, spec.norm_eps));
            }
        }
        let (rope, tables) = (spec.rope(l), &s.rope[spec.attention(l).rope]);
        for (x, width) in [(&mut *q, qd), (&mut *k, kd)] {
            by_token(threads, x, width, |t, x| {
                kernels.rope(x, spec.head_dim, &tables[t * rope.dim..(t + 1) * rope.dim], rope.kind);
            });
        }
        let mut at = 0;
        for r in rows.iter_mut() {
            if let Some(kv) = &mut r.kv {
                kv.push(l, &k[at * kd..(at + r.tokens) * kd], &v[at * kd..(at + r.tokens) * kd]);
            }
            at += r.tokens;
        }
        let attn = &mut s.attn[..n * qd];
        attention(dev, spec, l, rows, (q, k, v), attn);
        // The norm buffer is free again: it takes the output projection.
        modules.linears(dev, (l, &w), [Linear::Output], attn, [&mut *x], &mut s.low);
        act(Point::Out(Place::Output), attn, x, &mut s.work);
        if let Some([norm, _]) = w.post_norm {
            by_token(threads, x, spec.hidden, |_, x| kernels.rms_norm_inplace(x, norm, spec.norm_eps));
        }
        act(Point::Add(Place::Output), &[], x, &mut s.work);
        if beside_attn {
            by_token(threads, x, spec.hidden, |t, x| kernels.add(x, &s.aside[t * spec.hidden..][..spec.hidden]));
        }
        by_token(threads, hidden, spec.hidden, |t, h| kernels.add(h, &x[t * spec.hidden..][..spec.hidden]));

        normalise(dev, hidden, w.ffn_norm, spec, x);
        act(Point::Out(Place::FfnNorm), hidden, x, &mut s.work);
        let (gate, up) = (&mut s.gate[..n * spec.ffn], &mut s.up[..n * spec.ffn]);
        modules.linears(dev, (l, &w), [Linear::Gate, Linear::Up], x, [&mut *gate, &mut *up], &mut s.low);
        for (place, y) in [(Place::Gate, &mut *gate), (Place::Up, &mut *up)] {
            act(Point::Out(place), x, y, &mut s.work);
        }
        if beside_ffn {
            s.aside[..x.len()].fill(0.0);
            act(Point::Aside(Place::Down), x, &mut s.aside[..x.len()], &mut s.work);
        }
        by_token(threads, gate, spec.ffn, |t, gate| {
            kernels.gate_mul(spec.activation, gate, &up[t * spec.ffn..][..spec.ffn]);
        });
        act(Point::In(Place::Down), &[], gate, &mut s.work);
        modules.linears(dev, (l, &w), [Linear::Down], gate, [&mut *x], &mut s.low);
        act(Point::Out(Place::Down), gate, x, &mut s.work);
        if let Some([_, norm]) = w.post_norm {
            by_token(threads, x, spec.hidden, |_, x| kernels.rms_norm_inplace(x, norm, spec.norm_eps));
        }
        act(Point::Add(Place::Down), &[], x, &mut s.work);
        if beside_ffn {
            by_token(threads, x, spec.hidden, |t, x| kernels.add(x, &s.aside[t * spec.hidden..][..spec.hidden]));
        }
        by_token(threads, hidden, spec.hidden, |t, h| kernels.add(h, &x[t * spec.hidden..][..spec.hidden]));
        act(Point::Layer, &[], hidden, &mut s.work);
        base.used(l);
        observe(l + 1, hidden);
    }
}

/// RMSNorm of each token: `[n, hidden]` to `[n, hidden]`.
pub(crate) fn normalise(
    (kernels, threads): (Kernels, &Threads),
    hidden: &[f32],
    weight: &[f32],
    spec: &ModelSpec,
    out: &mut [f32],
) {
    by_token(threads, out, spec.hidden, |t, y| {
        kernels.rms_norm(&hidden[t * spec.hidden..][..spec.hidden], weight, spec.norm_eps, y);
    });
}

/// Runs `f` on each token's numbers, `[n, width]`, on several threads where that is worth it.
pub(crate) fn by_token(threads: &Threads, data: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    let part = |first: usize, data: &mut [f32]| {
        data.chunks_exact_mut(width).enumerate().for_each(|(i, x)| f(first + i, x));
    };
    if data.len() < 1 << 14 { part(0, data) } else { threads.split_mut(data, width, part) }
}

/// Rotary tables of every token of the batch, `[tokens, rope_dim]`.
fn turns(threads: &Threads, rope: Rope, rows: &[Row<'_>], tables: &mut [f32]) {
    by_token(threads, tables, rope.dim, |t, table| {
        let mut first = 0;
        for r in rows {
            if t < first + r.tokens {
                let past = r.kv.as_ref().map_or(0, |kv| kv.len()) + r.module.map_or(0, Module::positions);
                return rope_table(rope.base, past + t - first, table);
            }
            first += r.tokens;
        }
    });
}
