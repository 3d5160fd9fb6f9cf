//! The decoder: layers of a llama-family model over a ragged batch.
//!
//! A batch is the tokens of several sequences one after another, `hidden [tokens, hidden]`,
//! without padding. Weights are read once per batch. A sequence either has a [`Kv`] cache and
//! continues it, or has none and attends to itself only (one-shot: classification, features).

use crate::base::{Base, Linear};
use crate::kernels::Kernels;
use crate::kv::{Kv, Store};
use crate::module::Module;
use crate::threads::Threads;
use conpet_formats::model_spec::ModelSpec;
use std::ops::Range;

/// One sequence of a batch.
#[derive(Debug)]
pub struct Row<'a> {
    /// New tokens of this sequence in the batch.
    pub tokens: usize,
    /// Its cache, if it continues one; grows by `tokens`.
    pub kv: Option<&'a mut Kv>,
}

/// Work space of a forward pass, kept between passes so that decoding allocates nothing.
#[derive(Debug, Default)]
pub struct Scratch {
    norm: Vec<f32>,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    attn: Vec<f32>,
    gate: Vec<f32>,
    up: Vec<f32>,
    low: Vec<f32>,
    rope: Vec<f32>,
    plan: Vec<Query>,
}

/// Where one query row finds its keys.
#[derive(Debug, Clone, Copy)]
struct Query {
    row: usize,
    /// First token of the row in the batch.
    start: usize,
    /// Keys to attend to, in the cache or from `start` in the batch.
    keys: usize,
}

impl Scratch {
    fn reserve(&mut self, spec: &ModelSpec, n: usize, rank: usize) {
        let grow = |v: &mut Vec<f32>, len: usize| {
            if v.len() < len {
                v.resize(len, 0.0);
            }
        };
        grow(&mut self.norm, n * spec.hidden);
        grow(&mut self.q, n * spec.q_dim());
        grow(&mut self.k, n * spec.kv_dim());
        grow(&mut self.v, n * spec.kv_dim());
        grow(&mut self.attn, n * spec.q_dim());
        grow(&mut self.gate, n * spec.ffn);
        grow(&mut self.up, n * spec.ffn);
        grow(&mut self.low, n * rank);
        grow(&mut self.rope, n * spec.rope_dim);
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        [&self.norm, &self.q, &self.k, &self.v, &self.attn, &self.gate, &self.up, &self.low, &self.rope]
            .iter()
            .map(|v| v.capacity() * 4)
            .sum()
    }
}

/// Cosines and sines of the rotary embedding at `position` (Su et al. 2021):
/// `out[2i], out[2i+1] = cos, sin of position · base^(-2i / rope_dim)`.
pub fn rope_table(spec: &ModelSpec, position: usize, out: &mut [f32]) {
    for (i, pair) in out[..spec.rope_dim].chunks_exact_mut(2).enumerate() {
        let freq = f64::from(spec.rope_base).powf(-2.0 * i as f64 / spec.rope_dim as f64);
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
    module: Option<&Module>,
    s: &mut Scratch,
    observe: &mut dyn FnMut(usize, &[f32]),
) {
    let spec = &base.spec;
    let n: usize = rows.iter().map(|r| r.tokens).sum();
    assert_eq!(hidden.len(), n * spec.hidden, "hidden must hold every token of the batch");
    if n == 0 {
        return;
    }
    s.reserve(spec, n, module.map_or(0, Module::rank));
    plan(spec, rows, s);
    let (qd, kd) = (spec.q_dim(), spec.kv_dim());
    let dev = (kernels, threads);
    for l in layers {
        let w = base.layer(l);
        let x = &mut s.norm[..n * spec.hidden];
        let (q, k, v) = (&mut s.q[..n * qd], &mut s.k[..n * kd], &mut s.v[..n * kd]);
        normalise(kernels, hidden, w.attn_norm, spec, x);
        kernels.matmul_many(
            threads,
            &mut [(w.linear(Linear::Q), &mut *q), (w.linear(Linear::K), &mut *k), (w.linear(Linear::V), &mut *v)],
            x,
            n,
        );
        if let Some(m) = module {
            m.apply(dev, (l, Linear::Q), x, q, n, &mut s.low);
            m.apply(dev, (l, Linear::K), x, k, n, &mut s.low);
            m.apply(dev, (l, Linear::V), x, v, n, &mut s.low);
        }
        for (t, table) in s.rope.chunks_exact(spec.rope_dim).take(n).enumerate() {
            kernels.rope(&mut q[t * qd..(t + 1) * qd], spec.head_dim, table, spec.rope);
            kernels.rope(&mut k[t * kd..(t + 1) * kd], spec.head_dim, table, spec.rope);
        }
        let mut at = 0;
        for r in rows.iter_mut() {
            if let Some(kv) = &mut r.kv {
                kv.push(l, &k[at * kd..(at + r.tokens) * kd], &v[at * kd..(at + r.tokens) * kd]);
            }
            at += r.tokens;
        }
        let attn = &mut s.attn[..n * qd];
        attention(dev, spec, l, rows, &s.plan, (q, k, v), attn);
        // The norm buffer is free again: it takes the output projection.
        kernels.matmul(threads, w.linear(Linear::Output), attn, x, n);
        if let Some(m) = module {
            m.apply(dev, (l, Linear::Output), attn, x, n, &mut s.low);
        }
        kernels.add(hidden, x);

        normalise(kernels, hidden, w.ffn_norm, spec, x);
        let (gate, up) = (&mut s.gate[..n * spec.ffn], &mut s.up[..n * spec.ffn]);
        kernels.matmul_many(
            threads,
            &mut [(w.linear(Linear::Gate), &mut *gate), (w.linear(Linear::Up), &mut *up)],
            x,
            n,
        );
        if let Some(m) = module {
            m.apply(dev, (l, Linear::Gate), x, gate, n, &mut s.low);
            m.apply(dev, (l, Linear::Up), x, up, n, &mut s.low);
        }
        kernels.silu_mul(gate, up);
        kernels.matmul(threads, w.linear(Linear::Down), gate, x, n);
        if let Some(m) = module {
            m.apply(dev, (l, Linear::Down), gate, x, n, &mut s.low);
        }
        kernels.add(hidden, x);
        observe(l + 1, hidden);
    }
}

/// RMSNorm of each token: `[n, hidden]` to `[n, hidden]`.
pub(crate) fn normalise(kernels: Kernels, hidden: &[f32], weight: &[f32], spec: &ModelSpec, out: &mut [f32]) {
    for (x, y) in hidden.chunks_exact(spec.hidden).zip(out.chunks_exact_mut(spec.hidden)) {
        kernels.rms_norm(x, weight, spec.norm_eps, y);
    }
}

/// Positions, rotary tables and key ranges of every token of the batch.
fn plan(spec: &ModelSpec, rows: &[Row<'_>], s: &mut Scratch) {
    s.plan.clear();
    let mut start = 0;
    for (row, r) in rows.iter().enumerate() {
        let past = r.kv.as_ref().map_or(0, |kv| kv.len());
        for i in 0..r.tokens {
            let t = start + i;
            rope_table(spec, past + i, &mut s.rope[t * spec.rope_dim..(t + 1) * spec.rope_dim]);
            s.plan.push(Query { row, start, keys: past + i + 1 });
        }
        start += r.tokens;
    }
}

/// Causal grouped-query attention: `q [n, q_dim]` against each row's keys and values.
fn attention(
    (kernels, threads): (Kernels, &Threads),
    spec: &ModelSpec,
    layer: usize,
    rows: &[Row<'_>],
    plan: &[Query],
    (q, k, v): (&[f32], &[f32], &[f32]),
    out: &mut [f32],
) {
    let (hd, kd, group) = (spec.head_dim, spec.kv_dim(), spec.n_head / spec.n_kv_head);
    let scale = 1.0 / (hd as f32).sqrt();
    // One job per token and key/value head: its `group` query heads share the loads.
    let job = |i: usize, out: &mut [f32], scores: &mut Vec<f32>| {
        let (t, kvh) = (i / spec.n_kv_head, i % spec.n_kv_head);
        let p = plan[t];
        let at = |j: usize| j * kd + kvh * hd..j * kd + (kvh + 1) * hd;
        for g in 0..group {
            let head = kvh * group + g;
            let query = &q[t * spec.q_dim() + head * hd..][..hd];
            let o = &mut out[g * hd..(g + 1) * hd];
            scores.clear();
            o.fill(0.0);
            match rows[p.row].kv.as_deref().map(|kv| kv.layer(layer)) {
                None => {
                    let (k, v) = (&k[p.start * kd..], &v[p.start * kd..]);
                    scores.extend((0..p.keys).map(|j| scale * kernels.dot_f32(query, &k[at(j)])));
                    kernels.softmax(scores);
                    scores.iter().enumerate().for_each(|(j, a)| kernels.axpy_f32(o, *a, &v[at(j)]));
                }
                Some([Store::F16(k), Store::F16(v)]) => {
                    scores.extend((0..p.keys).map(|j| scale * kernels.dot_f16(query, &k[at(j)])));
                    kernels.softmax(scores);
                    scores.iter().enumerate().for_each(|(j, a)| kernels.axpy_f16(o, *a, &v[at(j)]));
                }
                Some([Store::F32(k), Store::F32(v)]) => {
                    scores.extend((0..p.keys).map(|j| scale * kernels.dot_f32(query, &k[at(j)])));
                    kernels.softmax(scores);
                    scores.iter().enumerate().for_each(|(j, a)| kernels.axpy_f32(o, *a, &v[at(j)]));
                }
                Some(_) => unreachable!("a cache stores keys and values alike"),
            }
        }
    };
    let width = group * hd;
    // Short work is not worth waking a thread for.
    let work: usize = plan.iter().map(|p| p.keys).sum::<usize>() * spec.q_dim() * 2;
    let part = |first: usize, out: &mut [f32]| {
        SCORES.with_borrow_mut(|scores| {
            out.chunks_exact_mut(width).enumerate().for_each(|(i, o)| job(first + i, o, scores));
        });
    };
    if work < 1 << 16 { part(0, out) } else { threads.split_mut(out, width, part) }
}

thread_local! {
    /// Attention scores of one query; grows to the longest context seen.
    static SCORES: std::cell::RefCell<Vec<f32>> = const { std::cell::RefCell::new(Vec::new()) };
}
