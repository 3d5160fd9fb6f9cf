//! Grouped-query attention over a ragged batch, with rotary embedding. Each sequence attends only to itself and
//! starts at position 0; in a decoder a token sees what came before it, in an encoder all of its sequence.
//!
//! Query, key and value heads of a token lie side by side in one row, `[q heads | k heads | v heads]`. Work is
//! split by sequence and key/value head; the query heads that share a key/value head are stacked, so each step
//! is one matrix product. The backward pass recomputes the probabilities: keeping them would cost
//! `tokens² · heads` values per layer.
//!
//! Learned keys and values (a prefix) come before each sequence's own; every token sees them, whatever
//! its window.

use super::matmul::{View, matmul};
use super::norm::Norm;
use conpet_formats::model_spec::{ModelSpec, RopeKind};
use conpet_runtime::kernels::Kernels;
use conpet_runtime::rope::rope_table;
use rayon::prelude::*;
use std::ops::Range;

/// The shape of a batch: where its sequences lie, and the rotary tables they need.
#[derive(Debug, Clone)]
pub struct Ragged {
    rows: Vec<Range<usize>>,
    /// Position of each token in its sequence.
    positions: Vec<usize>,
    /// For each rotary embedding of the base, its table `[longest, dim]` and the table of the inverse rotation.
    tables: Vec<[Vec<f32>; 2]>,
    /// How many tokens at the start of each sequence are visible through any window.
    pinned: usize,
}

impl Ragged {
    /// A batch of sequences of these lengths, one after another.
    pub fn new(spec: &ModelSpec, lens: &[usize]) -> Self {
        let longest = lens.iter().copied().max().unwrap_or(0);
        let tables = spec.ropes.iter().map(|rope| {
            let mut table = vec![0.0; longest * rope.dim];
            table.chunks_exact_mut(rope.dim).enumerate().for_each(|(p, t)| rope_table(rope, p, t));
            let back = table.chunks_exact(2).flat_map(|cs| [cs[0], -cs[1]]).collect();
            [table, back]
        });
        let rows = lens.iter().scan(0, |at, n| {
            *at += n;
            Some(*at - n..*at)
        });
        let positions = lens.iter().flat_map(|n| 0..*n).collect();
        Self { rows: rows.collect(), positions, tables: tables.collect(), pinned: 0 }
    }

    /// The same batch, with sequences that begin with this many learned rows, which are visible through any window.
    #[must_use]
    pub fn pinned(self, rows: usize) -> Self {
        Self { pinned: rows, ..self }
    }

    /// Token ranges of the sequences.
    pub fn rows(&self) -> &[Range<usize>] {
        &self.rows
    }

    /// Total number of tokens.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }
}

/// The attention heads of a layer.
#[derive(Debug, Clone)]
pub struct Heads {
    query: usize,
    kv: usize,
    dim: usize,
    /// Factor on the product of a query and a key.
    scale: f32,
    /// Bends the scaled products.
    cap: Option<f32>,
    /// A token does not see what comes after it.
    causal: bool,
    /// How many of the newest tokens a token sees.
    window: usize,
    /// Which pairs turn, how many values of a head do, and the index of the tables among the batch's rotary
    /// tables; `None` if nothing turns.
    rope: Option<(RopeKind, usize, usize)>,
    /// Norms of queries and of keys, in families that have them.
    norms: Option<[Norm; 2]>,
    kernels: Kernels,
}

impl Heads {
    /// The heads of a layer of a base.
    pub fn new(spec: &ModelSpec, layer: usize, norms: Option<[Norm; 2]>, kernels: Kernels) -> Self {
        let attention = spec.attention(layer);
        Self {
            query: spec.n_head,
            kv: spec.n_kv_head,
            dim: spec.head_dim,
            scale: spec.attention_scale,
            cap: spec.attention_cap,
            causal: spec.causal,
            window: attention.window.unwrap_or(usize::MAX),
            rope: attention.rope.map(|i| (spec.ropes[i].kind, spec.ropes[i].dim, i)),
            norms,
            kernels,
        }
    }

    /// Width of a row `[q | k | v]`.
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

    /// Whether queries and keys are normalised.
    pub fn normalises(&self) -> bool {
        self.norms.is_some()
    }

    /// Normalises the query and key heads of `qkv [n, width]` in place, in families that do.
    pub fn normalise(&self, qkv: &mut [f32]) {
        let Some(norms) = &self.norms else { return };
        qkv.par_chunks_exact_mut(self.width()).with_min_len(super::MIN_ROWS).for_each(|row| {
            self.normed(norms, row).for_each(|(norm, part)| norm.row_inplace(part));
        });
    }

    /// Turns the gradient `d_qkv` of the normalised heads into one of the `raw` ones, both `[n, width]`.
    pub fn normalise_back(&self, raw: &[f32], d_qkv: &mut [f32]) {
        let Some(norms) = &self.norms else { return };
        let rows = d_qkv.par_chunks_exact_mut(self.width()).zip(raw.par_chunks_exact(self.width()));
        rows.with_min_len(super::MIN_ROWS).for_each(|(d_row, raw)| {
            let mut at = 0;
            for (norm, d) in self.normed(norms, d_row) {
                norm.row_backward(&raw[at..at + d.len()], d);
                at += d.len();
            }
        });
    }

    /// The parts of a token's row `[width]` that are normalised by themselves, in order, each with its norm: heads,
    /// or all queries and all keys.
    fn normed<'a>(&self, norms: &'a [Norm; 2], row: &'a mut [f32]) -> impl Iterator<Item = (&'a Norm, &'a mut [f32])> {
        let (queries, rest) = row.split_at_mut(self.query * self.dim);
        let keys = &mut rest[..self.kv * self.dim];
        let parts =
            |norm: &'a Norm, x: &'a mut [f32]| x.chunks_exact_mut(norm.weight.len()).map(move |part| (norm, part));
        parts(&norms[0], queries).chain(parts(&norms[1], keys))
    }

    /// Rotates the query and key heads of `qkv [n, width]` in place; with `inverse`, rotates backwards, which
    /// also turns a gradient of the rotated values into one of the unrotated.
    pub fn rotate(&self, batch: &Ragged, qkv: &mut [f32], inverse: bool) {
        let Some((kind, dim, table)) = self.rope else { return };
        let table = &batch.tables[table][usize::from(inverse)];
        let turning = (self.query + self.kv) * self.dim;
        let rows = qkv.par_chunks_exact_mut(self.width()).zip(&batch.positions);
        rows.with_min_len(super::MIN_ROWS).for_each(|(row, p)| {
            let table = &table[p * dim..(p + 1) * dim];
            self.kernels.rope(&mut row[..turning], self.dim, table, kind);
        });
    }

    /// Attention output `[n, query heads · dim]` for `qkv [n, width]`, rotated.
    pub fn forward(&self, batch: &Ragged, qkv: &[f32], learned: Option<Learned<'_>>) -> Vec<f32> {
        let parts = self.each(batch, qkv, learned, |j| j.forward());
        let width = self.query * self.dim;
        let mut out = vec![0.0; batch.tokens() * width];
        for (i, part) in parts.iter().enumerate() {
            let (tokens, kv) = (&batch.rows[i / self.kv], i % self.kv);
            unstack(part, self.dim, tokens, kv * self.group() * self.dim, width, &mut out);
        }
        out
    }

    /// The gradient of `qkv` (rotated), given that of the output; adds those of the learned keys and
    /// values to `d_learned`.
    pub fn backward(
        &self,
        batch: &Ragged,
        qkv: &[f32],
        learned: Option<Learned<'_>>,
        d_out: &[f32],
        mut d_learned: [&mut [f32]; 2],
    ) -> Vec<f32> {
        let parts = self.each(batch, qkv, learned, |j| j.backward(d_out));
        let (d, width) = (self.dim, self.width());
        let mut out = vec![0.0; batch.tokens() * width];
        let before = learned.map_or(0, |l| l[0].len() / self.kv);
        for (i, [dq, dk, dv]) in parts.iter().enumerate() {
            let (tokens, kv) = (&batch.rows[i / self.kv], i % self.kv);
            let (key, value) = self.key_value(kv);
            unstack(dq, d, tokens, kv * self.group() * d, width, &mut out);
            for ((dx, column), sum) in [(dk, key.start), (dv, value.start)].into_iter().zip(&mut d_learned) {
                let (of_learned, own) = dx.split_at(before);
                unstack(own, d, tokens, column, width, &mut out);
                for (pair, dx) in sum.chunks_exact_mut(self.kv * d).zip(of_learned.chunks_exact(d)) {
                    self.kernels.add(&mut pair[kv * d..(kv + 1) * d], dx);
                }
            }
        }
        out
    }

    /// Runs every sequence and key/value head, in parallel; results in order.
    fn each<T: Send>(
        &self,
        batch: &Ragged,
        qkv: &[f32],
        learned: Option<Learned<'_>>,
        f: impl Fn(Part<'_>) -> T + Sync,
    ) -> Vec<T> {
        (0..batch.rows.len() * self.kv)
            .into_par_iter()
            .map(|i| f(Part::new(self, batch, i / self.kv, i % self.kv, qkv, learned)))
            .collect()
    }
}

/// Learned keys and values, `[pairs, kv heads · dim]` each; the keys have no position.
pub type Learned<'a> = [&'a [f32]; 2];

/// One sequence and key/value head.
struct Part<'a> {
    heads: &'a Heads,
    tokens: Range<usize>,
    pinned: usize,
    kv: usize,
    keys: Rows<'a>,
    values: Rows<'a>,
    /// Stacked queries `[group · tokens, dim]`, head by head.
    queries: Vec<f32>,
}

/// Keys or values of a head: the sequence's own in place, or a copy with learned ones before them.
enum Rows<'a> {
    Own(View<'a>),
    Joined(Vec<f32>, usize),
}

impl<'a> Rows<'a> {
    fn new(own: &'a [f32], width: usize, column: Range<usize>, learned: Option<(&[f32], usize, usize)>) -> Self {
        let Some((learned, pitch, at)) = learned else { return Self::Own(View::new(own, width).columns(column)) };
        let d = column.len();
        let before = learned.chunks_exact(pitch).map(|row| &row[at..at + d]);
        let rows = before.chain(own.chunks_exact(width).map(|row| &row[column.clone()]));
        Self::Joined(rows.flatten().copied().collect(), d)
    }

    fn view(&self) -> View<'_> {
        match self {
            Self::Own(v) => *v,
            Self::Joined(v, d) => View::new(v, *d),
        }
    }
}

impl<'a> Part<'a> {
    fn new(
        heads: &'a Heads,
        batch: &Ragged,
        sequence: usize,
        kv: usize,
        qkv: &'a [f32],
        learned: Option<Learned<'_>>,
    ) -> Self {
        let (tokens, pinned) = (batch.rows[sequence].clone(), batch.pinned);
        let width = heads.width();
        let rows = &qkv[tokens.start * width..tokens.end * width];
        let (key, value) = heads.key_value(kv);
        let queries = stack(heads, qkv, width, &tokens, kv);
        let before = |which: usize| learned.map(|l| (l[which], heads.kv * heads.dim, kv * heads.dim));
        let keys = Rows::new(rows, width, key, before(0));
        Self { heads, tokens, pinned, kv, keys, values: Rows::new(rows, width, value, before(1)), queries }
    }

    /// Number of keys, the learned ones included.
    fn total(&self) -> usize {
        self.keys.view().height()
    }

    fn queries(&self) -> View<'_> {
        View::new(&self.queries, self.heads.dim)
    }

    /// The range of keys (within `0..total`) that the layer's window hides from a token of the sequence.
    fn hidden(&self, token: usize) -> Range<usize> {
        let before = self.total() - self.tokens.len();
        let from = if token < self.pinned { 0 } else { self.pinned };
        before + from..before + from.max((token + 1).saturating_sub(self.heads.window))
    }

    /// `scale · q kᵀ`, bent where the base does so, `[group · tokens, total]`.
    fn scores(&self) -> Vec<f32> {
        let (scale, kernels) = (self.heads.scale, self.heads.kernels);
        let mut s = matmul(self.queries(), self.keys.view().t(), 1);
        s.iter_mut().for_each(|v| *v *= scale);
        if let Some(cap) = self.heads.cap {
            kernels.soft_cap(&mut s, cap);
        }
        s
    }

    /// `softmax` of the scores of the keys that each token sees, `[group · tokens, total]`.
    fn probabilities(&self) -> Vec<f32> {
        let (len, total) = (self.tokens.len(), self.total());
        let mut p = self.scores();
        for (i, row) in p.chunks_exact_mut(total).enumerate() {
            let end = if self.heads.causal { total - len + i % len + 1 } else { total };
            let (seen, future) = row.split_at_mut(end);
            let hidden = self.hidden(i % len);
            seen[hidden.clone()].fill(f32::NEG_INFINITY);
            self.heads.kernels.softmax(seen);
            seen[hidden].fill(0.0);
            future.fill(0.0);
        }
        p
    }

    /// Output of the group, `[group · tokens, dim]`.
    fn forward(&self) -> Vec<f32> {
        matmul(View::new(&self.probabilities(), self.total()), self.values.view(), 1)
    }

    /// Gradients of (stacked queries, keys, values).
    fn backward(&self, d_out: &[f32]) -> [Vec<f32>; 3] {
        let (total, scale) = (self.total(), self.heads.scale);
        let d_out = stack(self.heads, d_out, self.heads.query * self.heads.dim, &self.tokens, self.kv);
        let d_out = View::new(&d_out, self.heads.dim);
        let p = self.probabilities();
        let dv = matmul(View::new(&p, total).t(), d_out, 1);
        // Softmax: ds = scale · p · (dp - Σ p dp). Columns that a token does not see have p = 0.
        let mut ds = matmul(d_out, self.values.view().t(), 1);
        for (ds, p) in ds.chunks_exact_mut(total).zip(p.chunks_exact(total)) {
            let mean = self.heads.kernels.dot_f32(ds, p);
            ds.iter_mut().zip(p).for_each(|(d, p)| *d = scale * p * (*d - mean));
        }
        if let Some(cap) = self.heads.cap {
            // The derivative of c · tanh(x / c) is 1 - (its value / c)².
            ds.iter_mut().zip(self.scores()).for_each(|(d, s)| *d *= 1.0 - (s / cap) * (s / cap));
        }
        let ds = View::new(&ds, total);
        [matmul(ds, self.keys.view(), 1), matmul(ds.t(), self.queries(), 1), dv]
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
    use conpet_formats::model_spec::{Attention, Rope};
    use conpet_formats::pet::prefix::attend_reference;
    use std::sync::Arc;

    /// Heads without norms or window.
    fn plain(spec: &ModelSpec) -> Heads {
        Heads::new(spec, 0, None, Kernels::detect())
    }

    #[test]
    fn gradients_are_exact_whatever_turns_is_normalised_bent_or_seen() {
        for (kind, query, kv, window, causal) in [
            (RopeKind::Adjacent, 4, 2, None, true),
            (RopeKind::Halves, 2, 2, None, false),
            (RopeKind::Halves, 4, 2, Some(2), true),
        ] {
            let spec = ModelSpec {
                ropes: vec![Rope::new(kind, 100.0, 4)],
                attention: vec![Attention { window, rope: Some(0) }],
                causal,
                attention_cap: (!causal).then_some(0.8),
                n_head: query,
                n_kv_head: kv,
                ..spec()
            };
            let kernels = Kernels::detect();
            // Each head by itself, or all heads together.
            let norm = |phase, heads| Norm {
                weight: Arc::new(wave(spec.head_dim * heads, phase)),
                ..Norm::plain_rms(1, 1e-5)
            };
            let norms = match (window, causal) {
                (Some(_), _) => Some([norm(1.0, 1), norm(4.0, 1)]),
                (_, false) => Some([norm(1.0, query), norm(4.0, kv)]),
                _ => None,
            };
            let heads = Heads::new(&spec, 0, norms, kernels);
            let batch = Ragged::new(&spec, &[4, 1, 2]).pinned(usize::from(window.is_some()));
            let rotated = |x: &[f32]| {
                let mut r = x.to_vec();
                heads.normalise(&mut r);
                heads.rotate(&batch, &mut r, false);
                r
            };
            let unrotated = |x: &[f32], mut d: Vec<f32>| {
                heads.rotate(&batch, &mut d, true);
                heads.normalise_back(x, &mut d);
                d
            };
            let x = wave(7 * heads.width(), 0.0);
            plain_gradient(
                &x,
                |x| heads.forward(&batch, &rotated(x), None),
                |x, dy| unrotated(x, heads.backward(&batch, &rotated(x), None, dy, [&mut [], &mut []])),
            );
            // With three learned pairs: the gradient of the states, and then of the pairs.
            let size = 3 * kv * spec.head_dim;
            let learned = wave(2 * size, 1.0);
            let pairs = |l: &[f32]| [l[..size].to_vec(), l[size..].to_vec()];
            let forward = |x: &[f32], l: &[f32]| {
                let [k, v] = pairs(l);
                heads.forward(&batch, &rotated(x), Some([&k, &v]))
            };
            let backward = |x: &[f32], l: &[f32], dy: &[f32]| {
                let [k, v] = pairs(l);
                let (mut dk, mut dv) = (vec![0.0; size], vec![0.0; size]);
                let d = heads.backward(&batch, &rotated(x), Some([&k, &v]), dy, [&mut dk, &mut dv]);
                (unrotated(x, d), [dk, dv].concat())
            };
            plain_gradient(&x, |x| forward(x, &learned), |x, dy| backward(x, &learned, dy).0);
            plain_gradient(&learned, |l| forward(&x, l), |l, dy| backward(&x, l, dy).1);
        }
    }

    #[test]
    fn sequences_do_not_see_each_other() {
        let spec = spec();
        let heads = plain(&spec);
        let x = wave(5 * heads.width(), 0.0);
        let both = heads.forward(&Ragged::new(&spec, &[3, 2]), &x, None);
        let (a, b) = x.split_at(3 * heads.width());
        let one = |x: &[f32], n| heads.forward(&Ragged::new(&spec, &[n]), x, None);
        assert_eq!(both, [one(a, 3), one(b, 2)].concat());
    }

    #[test]
    fn a_window_hides_all_but_the_newest_and_what_is_pinned() {
        let spec = ModelSpec { attention: vec![Attention { window: Some(2), rope: Some(0) }], ..spec() };
        let (heads, width) = (plain(&spec), plain(&spec).width());
        let x = wave(5 * width, 0.0);
        let last = |x: &[f32], pinned| {
            heads.forward(&Ragged::new(&spec, &[5]).pinned(pinned), x, None).split_off(4 * spec.q_dim())
        };
        for (token, pinned, seen) in [(0, 0, false), (2, 0, false), (3, 0, true), (0, 1, true), (1, 1, false)] {
            let mut other = x.clone();
            other[token * width..(token + 1) * width].iter_mut().for_each(|v| *v += 1.0);
            assert_eq!(last(&x, pinned) != last(&other, pinned), seen, "token {token} with {pinned} pinned");
        }
    }

    #[test]
    fn learned_pairs_are_attended_to_as_the_scalar_reference_says() {
        let spec = spec();
        let (heads, d) = (plain(&spec), spec.head_dim);
        let (width, kv_dim) = (heads.width(), spec.kv_dim());
        let (x, k, v) = (wave(4 * width, 0.0), wave(3 * kv_dim, 1.0), wave(3 * kv_dim, 2.0));
        let got = heads.forward(&Ragged::new(&spec, &[4]), &x, Some([&k, &v]));
        let columns = |rows: &[f32], pitch: usize, at: usize| -> Vec<f32> {
            rows.chunks(pitch).flat_map(|r| &r[at..at + d]).copied().collect()
        };
        for t in 0..4 {
            for q in 0..spec.n_head {
                let kv = q / (spec.n_head / spec.n_kv_head);
                let seen = &x[..(t + 1) * width];
                let own = [spec.n_head + kv, spec.n_head + spec.n_kv_head + kv].map(|h| columns(seen, width, h * d));
                let learned = [&k, &v].map(|x| columns(x, kv_dim, kv * d));
                let want = attend_reference(
                    &x[t * width + q * d..][..d],
                    learned.each_ref().map(Vec::as_slice),
                    own.each_ref().map(Vec::as_slice),
                    (spec.attention_scale, None),
                );
                let got = &got[(t * spec.n_head + q) * d..][..d];
                // Sums of a few products of size about 1, in f32.
                assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5), "token {t}, head {q}");
            }
        }
    }
}
