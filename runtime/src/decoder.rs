//! Runs the layers of a base, decoder or encoder, over a batch.
//!
//! A batch holds the tokens of several sequences one after another, `hidden [tokens, hidden]`, without padding.
//! Weights are read once per batch. A sequence either continues its cache, or has none and attends only to its
//! tokens in the batch (for classification and features).

mod in_force;

use crate::aligned::Aligned;
use crate::attention::attention;
use crate::base::{Base, Linear};
use crate::batch::Span;
use crate::blend::Blend;
use crate::cpu::Cpu;
use crate::kv::{Kv, KvType};
use crate::module::Module;
use crate::rope::rope_table;
use conpet_formats::model_spec::{ModelSpec, Norm, Rope};
use conpet_formats::pet::{Place, Point};
use in_force::{InForce, Work};
use std::ops::Range;
use std::sync::Arc;

/// Work space of a pass, kept between passes so that decoding allocates nothing.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    norm: Aligned<f32>,
    q: Aligned<f32>,
    k: Aligned<f32>,
    v: Aligned<f32>,
    attn: Aligned<f32>,
    gate: Aligned<f32>,
    up: Aligned<f32>,
    /// Output of parallel adapters, which run beside a sublayer.
    aside: Aligned<f32>,
    /// For each rotary embedding of the base, the tables of the batch's tokens.
    rope: Vec<Aligned<f32>>,
    in_force: Work,
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
}

/// Runs `layers` over the batch in place: see [`crate::device::Device::layers`].
///
/// # Panics
/// If `hidden` does not hold the spans' tokens.
pub(crate) fn layers(
    cpu: &Cpu,
    base: &Base,
    layers: Range<usize>,
    spans: &mut [Span<'_>],
    hidden: &mut [f32],
    s: &mut Scratch,
    observe: &mut dyn FnMut(usize, &[f32]),
) {
    let (spec, kernels) = (&base.spec, cpu.kernels);
    let n: usize = spans.iter().map(|s| s.tokens).sum();
    assert_eq!(hidden.len(), n * spec.hidden, "hidden must hold every token of the batch");
    if n == 0 {
        return;
    }
    let in_force = InForce::new(spans);
    in_force.modules().for_each(|m| prepare(cpu, base, m));
    s.reserve(spec, n);
    in_force.reserve(spec.q_dim().max(spec.ffn).max(spec.hidden), &mut s.in_force);
    for (rope, table) in spec.ropes.iter().zip(&mut s.rope) {
        turns(cpu, rope, spans, &mut table[..n * rope.dim]);
    }
    let (qd, kd) = (spec.q_dim(), spec.kv_dim());
    let [beside_attn, beside_ffn] = [Place::Output, Place::Down].map(|place| in_force.aside(place));
    if beside_attn || beside_ffn {
        s.aside.reserve(n * spec.hidden);
    }
    for l in layers {
        let act = |point: Point, x: &[f32], y: &mut [f32], work: &mut Work| in_force.act(cpu, (l, point), x, y, work);
        let w = base.layer(l);
        let x = &mut s.norm[..n * spec.hidden];
        let (q, k, v) = (&mut s.q[..n * qd], &mut s.k[..n * kd], &mut s.v[..n * kd]);
        if let Some(norm) = w.norm(Norm::Attn) {
            norm.rows(cpu, hidden, x);
            act(Point::Out(Place::AttnNorm), hidden, x, &mut s.in_force);
        }
        let read = if spec.has(Norm::Attn) { &*x } else { &*hidden };
        let which = [Linear::Q, Linear::K, Linear::V];
        in_force.linears(cpu, (l, &w), which, read, [&mut *q, &mut *k, &mut *v], &mut s.in_force);
        for (place, y) in [(Place::Q, &mut *q), (Place::K, &mut *k), (Place::V, &mut *v)] {
            act(Point::Out(place), read, y, &mut s.in_force);
        }
        if beside_attn {
            s.aside[..read.len()].fill(0.0);
            act(Point::Aside(Place::Output), read, &mut s.aside[..read.len()], &mut s.in_force);
        }
        for (x, norm) in [(&mut *q, Norm::Q), (&mut *k, Norm::K)] {
            if let Some(norm) = w.norm(norm) {
                norm.rows_inplace(cpu, x);
            }
        }
        if let Some((rope, tables)) = spec.attention(l).rope.map(|r| (&spec.ropes[r], &s.rope[r])) {
            for (x, width) in [(&mut *q, qd), (&mut *k, kd)] {
                cpu.by_row(x, width, |t, x| {
                    kernels.rope(x, spec.head_dim, &tables[t * rope.dim..(t + 1) * rope.dim], rope.kind);
                });
            }
        }
        let mut at = 0;
        for span in spans.iter_mut() {
            if let Some(kv) = &mut span.kv {
                let own = at * kd..(at + span.tokens) * kd;
                kv.push(l, &k[own.clone()], &v[own]);
            }
            at += span.tokens;
        }
        let attn = &mut s.attn[..n * qd];
        attention(cpu, spec, l, spans, (q, k, v), attn);
        // The norm buffer is free again: it takes the output projection.
        in_force.linears(cpu, (l, &w), [Linear::Output], attn, [&mut *x], &mut s.in_force);
        act(Point::Out(Place::Output), attn, x, &mut s.in_force);
        if let Some(norm) = w.norm(Norm::PostAttn) {
            norm.rows_inplace(cpu, x);
        }
        act(Point::Add(Place::Output), &[], x, &mut s.in_force);
        join(cpu, spec, hidden, x, beside_attn.then_some(&s.aside));
        if let Some(norm) = w.norm(Norm::AttnSum) {
            norm.rows_inplace(cpu, hidden);
        }

        if let Some(norm) = w.norm(Norm::Ffn) {
            norm.rows(cpu, hidden, x);
            act(Point::Out(Place::FfnNorm), hidden, x, &mut s.in_force);
        }
        let read = if spec.has(Norm::Ffn) { &*x } else { &*hidden };
        let (gate, up) = (&mut s.gate[..n * spec.ffn], &mut s.up[..n * spec.ffn]);
        if spec.gated {
            in_force.linears(cpu, (l, &w), [Linear::Gate, Linear::Up], read, [&mut *gate, &mut *up], &mut s.in_force);
            act(Point::Out(Place::Gate), read, gate, &mut s.in_force);
        } else {
            in_force.linears(cpu, (l, &w), [Linear::Up], read, [&mut *up], &mut s.in_force);
        }
        act(Point::Out(Place::Up), read, up, &mut s.in_force);
        if beside_ffn {
            s.aside[..read.len()].fill(0.0);
            act(Point::Aside(Place::Down), read, &mut s.aside[..read.len()], &mut s.in_force);
        }
        let inner = if spec.gated {
            cpu.by_row(gate, spec.ffn, |t, gate| {
                kernels.gate_mul(spec.activation, gate, &up[t * spec.ffn..][..spec.ffn]);
            });
            gate
        } else {
            cpu.by_row(up, spec.ffn, |_, up| kernels.activate(spec.activation, up));
            up
        };
        act(Point::In(Place::Down), &[], inner, &mut s.in_force);
        in_force.linears(cpu, (l, &w), [Linear::Down], inner, [&mut *x], &mut s.in_force);
        act(Point::Out(Place::Down), inner, x, &mut s.in_force);
        if let Some(norm) = w.norm(Norm::PostFfn) {
            norm.rows_inplace(cpu, x);
        }
        act(Point::Add(Place::Down), &[], x, &mut s.in_force);
        join(cpu, spec, hidden, x, beside_ffn.then_some(&s.aside));
        if let Some(norm) = w.norm(Norm::FfnSum) {
            norm.rows_inplace(cpu, hidden);
        }
        act(Point::Layer, &[], hidden, &mut s.in_force);
        base.used(l);
        observe(l + 1, hidden);
    }
}

/// Adds to the residual stream `hidden [n, hidden]` what a sublayer has given in `x`, and what ran beside it.
fn join(cpu: &Cpu, spec: &ModelSpec, hidden: &mut [f32], x: &mut [f32], aside: Option<&Aligned<f32>>) {
    let width = spec.hidden;
    if let Some(aside) = aside {
        cpu.by_row(x, width, |t, x| cpu.kernels.add(x, &aside[t * width..][..width]));
    }
    cpu.by_row(hidden, width, |t, h| {
        let x = &x[t * width..][..width];
        match spec.residual_scale {
            1.0 => cpu.kernels.add(h, x),
            scale => cpu.kernels.axpy_f32(h, scale, x),
        }
    });
}

/// The last norm of a base, of each token's state `[n, hidden]`; a copy where the layers end with a norm.
pub(crate) fn finish(cpu: &Cpu, base: &Base, hidden: &[f32], out: &mut [f32]) {
    match base.output_norm() {
        Some(norm) => norm.rows(cpu, hidden, out),
        None => out.copy_from_slice(hidden),
    }
}

/// Computes, at a module's first use, the part of it that does not depend on the input. The result is kept, so
/// it has the rounding of the kernels that were used first.
fn prepare(cpu: &Cpu, base: &Base, module: &Module) {
    module.prepare(cpu.kernels, |module, tokens, states| {
        let spec = &base.spec;
        let mut kv = Kv::new(0..spec.n_layer, spec.kv_dim(), KvType::F32);
        let blend = Blend::from(Arc::new(module));
        let mut spans = [Span { tokens, kv: Some(&mut kv), blend: &blend }];
        layers(cpu, base, 0..spec.n_layer, &mut spans, states, &mut Scratch::default(), &mut |_, _| {});
        kv
    });
}

/// Fills the rotary tables of every token of the batch, `[tokens, rope_dim]`.
fn turns(cpu: &Cpu, rope: &Rope, spans: &[Span<'_>], tables: &mut [f32]) {
    cpu.by_row(tables, rope.dim, |t, table| {
        let mut first = 0;
        for s in spans {
            if t < first + s.tokens {
                return rope_table(rope, s.past() + s.blend.positions() + t - first, table);
            }
            first += s.tokens;
        }
    });
}
