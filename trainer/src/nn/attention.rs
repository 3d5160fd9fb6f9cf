//! Causal grouped-query attention over a ragged batch, each sequence attending to itself only,
//! from position 0; rotary embedding included.
//!
//! Query, key and value heads of a token lie side by side in one row, `[q heads | k heads | v
//! heads]`. Work is split by sequence and key/value head; the query heads that share a key/value
//! head are stacked, so each step is one matrix product. The backward computes the probabilities
//! again: keeping them costs `tokens² · heads` numbers a layer.

use super::matmul::{View, matmul};
use conpet_formats::model_spec::{ModelSpec, RopeKind};
use conpet_runtime::forward::rope_table;
use conpet_runtime::kernels::Kernels;
use rayon::prelude::*;
use std::ops::Range;

/// The shape of a batch: where its sequences lie, and the rotary tables they need.
#[derive(Debug, Clone)]
pub struct Ragged {
    rows: Vec<Range<usize>>,
    /// Position of each token in its sequence.
    positions: Vec<usize>,
    /// `[longest, rope_dim]`, and the same with the turn reversed.
    rope: [Vec<f32>; 2],
}

impl Ragged {
    /// For sequences of these lengths, one after another.
    pub fn new(spec: &ModelSpec, lens: &[usize]) -> Self {
        let longest = lens.iter().copied().max().unwrap_or(0);
        let mut rope = vec![0.0; longest * spec.rope_dim];
        rope.chunks_exact_mut(spec.rope_dim).enumerate().for_each(|(p, t)| rope_table(spec.rope_base, p, t));
        let back = rope.chunks_exact(2).flat_map(|cs| [cs[0], -cs[1]]).collect();
        let rows = lens.iter().scan(0, |at, n| {
            *at += n;
            Some(*at - n..*at)
        });
        Self { rows: rows.collect(), positions: lens.iter().flat_map(|n| 0..*n).collect(), rope: [rope, back] }
    }

    /// Token ranges of the sequences.
    pub fn rows(&self) -> &[Range<usize>] {
        &self.rows
    }

    /// Tokens in all.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }
}

/// The heads of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    query: usize,
    kv: usize,
    dim: usize,
    rope_dim: usize,
    kind: RopeKind,
    kernels: Kernels,
}

impl Heads {
    /// The heads of a base.
    pub fn new(spec: &ModelSpec, kernels: Kernels) -> Self {
        let (query, kv, dim) = (spec.n_head, spec.n_kv_head, spec.head_dim);
        Self { query, kv, dim, rope_dim: spec.rope_dim, kind: spec.rope, kernels }
    }

    /// Numbers of a row `[q | k | v]`.
    pub fn width(&self) -> usize {
        (self.query + 2 * self.kv) * self.dim
    }

    /// Query heads for each key/value head.
    fn group(&self) -> usize {
        self.query / self.kv
    }

    /// Columns of key head `j`, and of its value head.
    fn key_value(&self, j: usize) -> (Range<usize>, Range<usize>) {
        let at = |h: usize| h * self.dim..(h + 1) * self.dim;
        (at(self.query + j), at(self.query + self.kv + j))
    }

    /// Rotates the query and key heads of `qkv [n, width]` in place; backwards with `inverse`,
    /// which is also what turns a gradient of the rotated numbers into one of the unrotated.
    pub fn rotate(&self, batch: &Ragged, qkv: &mut [f32], inverse: bool) {
        let table = &batch.rope[usize::from(inverse)];
        let turning = (self.query + self.kv) * self.dim;
        let rows = qkv.par_chunks_exact_mut(self.width()).zip(&batch.positions);
        rows.with_min_len(super::MIN_ROWS).for_each(|(row, p)| {
            let table = &table[p * self.rope_dim..(p + 1) * self.rope_dim];
            self.kernels.rope(&mut row[..turning], self.dim, table, self.kind);
        });
    }

    /// `qkv [n, width]`, rotated, to `[n, query heads · dim]`.
    pub fn forward(&self, batch: &Ragged, qkv: &[f32]) -> Vec<f32> {
        let parts = self.each(batch, qkv, |j| j.forward());
        let width = self.query * self.dim;
        let mut out = vec![0.0; batch.tokens() * width];
        for (i, part) in parts.iter().enumerate() {
            let (tokens, kv) = (&batch.rows[i / self.kv], i % self.kv);
            unstack(part, self.dim, tokens, kv * self.group() * self.dim, width, &mut out);
        }
        out
    }

    /// The gradient of `qkv` (rotated), given that of the output.
    pub fn backward(&self, batch: &Ragged, qkv: &[f32], d_out: &[f32]) -> Vec<f32> {
        let parts = self.each(batch, qkv, |j| j.backward(d_out));
        let (d, width) = (self.dim, self.width());
        let mut out = vec![0.0; batch.tokens() * width];
        for (i, [dq, dk, dv]) in parts.iter().enumerate() {
            let (tokens, kv) = (&batch.rows[i / self.kv], i % self.kv);
            let (key, value) = self.key_value(kv);
            unstack(dq, d, tokens, kv * self.group() * d, width, &mut out);
            unstack(dk, d, tokens, key.start, width, &mut out);
            unstack(dv, d, tokens, value.start, width, &mut out);
        }
        out
    }

    /// Runs every sequence and key/value head, in parallel; results in order.
    fn each<T: Send>(&self, batch: &Ragged, qkv: &[f32], f: impl Fn(Part<'_>) -> T + Sync) -> Vec<T> {
        (0..batch.rows.len() * self.kv)
            .into_par_iter()
            .map(|i| f(Part::new(*self, batch.rows[i / self.kv].clone(), i % self.kv, qkv)))
            .collect()
    }
}

/// One sequence and key/value head.
struct Part<'a> {
    heads: Heads,
    tokens: Range<usize>,
    kv: usize,
    keys: View<'a>,
    values: View<'a>,
    /// Stacked queries `[group · tokens, dim]`, head by head.
    queries: Vec<f32>,
}

impl<'a> Part<'a> {
    fn new(heads: Heads, tokens: Range<usize>, kv: usize, qkv: &'a [f32]) -> Self {
        let width = heads.width();
        let rows = View::new(&qkv[tokens.start * width..tokens.end * width], width);
        let (key, value) = heads.key_value(kv);
        let queries = stack(&heads, qkv, width, &tokens, kv);
        Self { heads, tokens, kv, keys: rows.columns(key), values: rows.columns(value), queries }
    }

    fn queries(&self) -> View<'_> {
        View::new(&self.queries, self.heads.dim)
    }

    fn scale(&self) -> f32 {
        1.0 / (self.heads.dim as f32).sqrt()
    }

    /// `softmax(q kᵀ / sqrt(dim))` with a causal limit, `[group · tokens, tokens]`.
    fn probabilities(&self) -> Vec<f32> {
        let (len, scale) = (self.tokens.len(), self.scale());
        let mut p = matmul(self.queries(), self.keys.t(), 1);
        for (i, row) in p.chunks_exact_mut(len).enumerate() {
            let (seen, future) = row.split_at_mut(i % len + 1);
            seen.iter_mut().for_each(|v| *v *= scale);
            self.heads.kernels.softmax(seen);
            future.fill(0.0);
        }
        p
    }

    /// Output of the group, `[group · tokens, dim]`.
    fn forward(&self) -> Vec<f32> {
        matmul(View::new(&self.probabilities(), self.tokens.len()), self.values, 1)
    }

    /// Gradients of (stacked queries, keys, values).
    fn backward(&self, d_out: &[f32]) -> [Vec<f32>; 3] {
        let (len, scale) = (self.tokens.len(), self.scale());
        let d_out = stack(&self.heads, d_out, self.heads.query * self.heads.dim, &self.tokens, self.kv);
        let d_out = View::new(&d_out, self.heads.dim);
        let p = self.probabilities();
        let dv = matmul(View::new(&p, len).t(), d_out, 1);
        // Softmax: ds = scale · p · (dp - Σ p dp). Future columns have p = 0.
        let mut ds = matmul(d_out, self.values.t(), 1);
        for (ds, p) in ds.chunks_exact_mut(len).zip(p.chunks_exact(len)) {
            let mean = self.heads.kernels.dot_f32(ds, p);
            ds.iter_mut().zip(p).for_each(|(d, p)| *d = scale * p * (*d - mean));
        }
        let ds = View::new(&ds, len);
        [matmul(ds, self.keys, 1), matmul(ds.t(), self.queries(), 1), dv]
    }
}

/// Copies a group's columns of `rows [n, width]` into `[group · tokens, dim]`, head by head.
fn stack(heads: &Heads, rows: &[f32], width: usize, tokens: &Range<usize>, kv: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(heads.group() * tokens.len() * heads.dim);
    for g in 0..heads.group() {
        let at = (kv * heads.group() + g) * heads.dim;
        tokens.clone().for_each(|t| out.extend_from_slice(&rows[t * width + at..][..heads.dim]));
    }
    out
}

/// Copies `[heads · tokens, d]`, head by head, to the columns from `at` on of `out [n, width]`.
fn unstack(part: &[f32], d: usize, tokens: &Range<usize>, at: usize, width: usize, out: &mut [f32]) {
    for (g, head) in part.chunks_exact(tokens.len() * d).enumerate() {
        for (t, row) in tokens.clone().zip(head.chunks_exact(d)) {
            out[t * width + at + g * d..][..d].copy_from_slice(row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{plain_gradient, spec, wave};

    #[test]
    fn gradients_are_exact_for_both_kinds_of_rotation() {
        for (rope, query, kv) in [(RopeKind::Adjacent, 4, 2), (RopeKind::Halves, 2, 2)] {
            let spec = ModelSpec { rope, n_head: query, n_kv_head: kv, ..spec() };
            let heads = Heads::new(&spec, Kernels::detect());
            let batch = Ragged::new(&spec, &[3, 1, 2]);
            let rotated = |x: &[f32]| {
                let mut r = x.to_vec();
                heads.rotate(&batch, &mut r, false);
                r
            };
            let x = wave(6 * heads.width(), 0.0);
            plain_gradient(
                &x,
                |x| heads.forward(&batch, &rotated(x)),
                |x, dy| {
                    let mut d = heads.backward(&batch, &rotated(x), dy);
                    heads.rotate(&batch, &mut d, true);
                    d
                },
            );
        }
    }

    #[test]
    fn sequences_do_not_see_each_other() {
        let spec = spec();
        let heads = Heads::new(&spec, Kernels::detect());
        let x = wave(5 * heads.width(), 0.0);
        let both = heads.forward(&Ragged::new(&spec, &[3, 2]), &x);
        let (a, b) = x.split_at(3 * heads.width());
        let one = |x: &[f32], n| heads.forward(&Ragged::new(&spec, &[n]), x);
        assert_eq!(both, [one(a, 3), one(b, 2)].concat());
    }
}
