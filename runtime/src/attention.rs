//! Grouped-query attention, a block of queries against a block of keys at a time. In a decoder a token sees
//! what came before it, in an encoder all of its sequence.
//!
//! The softmax is computed online (Milakov & Gimelshein 2018; Dao et al. 2022): only one block of scores exists
//! at a time. A block of keys and values is converted to `f32` once for all queries of a block and all query
//! heads that share it. Blocks of keys start at multiples of [`KEYS`], so the grouping of queries never changes
//! a result.

use crate::aligned::Aligned;
use crate::batch::Span;
use crate::cpu::Cpu;
use crate::kernels::{Gemm, Kernels};
use crate::kv::Store;
use crate::module::Learned;
use conpet_formats::model_spec::ModelSpec;
use std::cell::RefCell;
use std::ops::Range;

/// Keys in a block.
const KEYS: usize = 64;
/// Query tokens in a block.
const TOKENS: usize = 32;
/// Number of query rows from which transposing the keys pays off.
const MANY: usize = 8;

/// Work space of one thread.
#[derive(Debug, Default)]
struct Scratch {
    /// Queries of the block, scaled: `[rows, head_dim]`.
    q: Aligned<f32>,
    /// A block of keys or values, `[KEYS, width]`.
    block: Aligned<f32>,
    /// Keys transposed, `[head_dim, KEYS]`.
    keys: Aligned<f32>,
    /// Scores, then softmax weights, `[rows, KEYS]`.
    scores: Aligned<f32>,
    /// Sums of weighted values, `[rows, width]`.
    sums: Aligned<f32>,
    /// Largest score and sum of weights of each row.
    state: Vec<(f32, f32)>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Where one sequence's keys and values are stored.
#[derive(Clone, Copy)]
enum Memory<'a> {
    /// In the sequence's cache.
    Cache([&'a Store; 2]),
    /// In the batch itself, `[tokens, kv_dim]` each.
    Batch([&'a [f32]; 2]),
}

/// Computes `out [n, q_dim]` from `q [n, q_dim]` and each span's keys and values. They come from its cache of
/// `layer`, which already holds the new tokens, or from `k, v [n, kv_dim]` where there is no cache or it was
/// empty before them; so the states of a prompt do not depend on whether it is cached. Keys and values that a
/// module has learned come first, and every token sees them.
pub(crate) fn attention(
    cpu: &Cpu,
    spec: &ModelSpec,
    layer: usize,
    spans: &[Span<'_>],
    (q, k, v): (&[f32], &[f32], &[f32]),
    out: &mut [f32],
) {
    let (group, kd) = (spec.n_head / spec.n_kv_head, spec.kv_dim());
    let (heads, width) = (spec.n_kv_head, group * spec.head_dim);
    let window = spec.attention(layer).window.unwrap_or(usize::MAX);
    // One unit of work is one token and one key/value head, whose query heads lie side by side.
    let work = |first: usize, out: &mut [f32]| {
        let units = first..first + out.len() / width;
        SCRATCH.with_borrow_mut(|s| {
            for head in 0..heads {
                let tokens = |unit: usize| (unit + heads - 1 - head) / heads;
                let mine = tokens(units.start)..tokens(units.end);
                let mut start = 0;
                for span in spans {
                    let end = start + span.tokens;
                    let (cache, learned) = (span.kv.as_deref(), span.blend.learned(layer));
                    let past = cache.map_or(0, |kv| kv.len_at(layer) - span.tokens);
                    let memory = match cache {
                        Some(kv) if past > 0 => Memory::Cache(kv.layer(layer)),
                        _ => Memory::Batch([&k[start * kd..end * kd], &v[start * kd..end * kd]]),
                    };
                    let (from, to) = (mine.start.max(start), mine.end.min(end));
                    for t in (from..to).step_by(TOKENS) {
                        let tokens = t..to.min(t + TOKENS);
                        let (kernels, len) = (cpu.kernels, end - start);
                        let block = Block { kernels, spec, head, memory, learned, tokens, window, past, start, len };
                        block.run(q, s, |t, values| {
                            let at = (t * heads + head - first) * width;
                            out[at..at + width].copy_from_slice(values);
                        });
                    }
                    start = end;
                }
            }
        });
    };
    // Short work is not worth waking a thread for.
    let keys = |s: &Span<'_>| s.kv.as_deref().map_or(s.tokens, |kv| kv.len_at(layer));
    let scores: usize = spans.iter().map(|s| s.tokens * keys(s)).sum();
    if scores * spec.q_dim() < 1 << 16 { work(0, out) } else { cpu.threads.split_mut(out, width, work) }
}

/// Some tokens of one sequence, and one key/value head.
struct Block<'a> {
    kernels: Kernels,
    spec: &'a ModelSpec,
    head: usize,
    memory: Memory<'a>,
    learned: Option<Learned<'a>>,
    /// The tokens, counted within the batch.
    tokens: Range<usize>,
    /// Width of the sliding window: how many of the newest keys a token sees, its own included.
    window: usize,
    /// Keys before the sequence's first token in the batch.
    past: usize,
    /// The sequence's first token in the batch.
    start: usize,
    /// Tokens of the sequence in the batch.
    len: usize,
}

impl Block<'_> {
    /// Computes the heads' outputs `[group · head_dim]` of each token and hands them to `store`.
    fn run(&self, q: &[f32], s: &mut Scratch, mut store: impl FnMut(usize, &[f32])) {
        let (spec, hd) = (self.spec, self.spec.head_dim);
        let (group, wide) = (spec.n_head / spec.n_kv_head, hd.next_multiple_of(Gemm::LANES));
        let rows = self.tokens.len() * group;
        s.q.reserve(rows * hd);
        s.block.reserve(KEYS * wide);
        s.keys.reserve(hd * KEYS);
        s.scores.reserve(rows * KEYS);
        s.sums.reserve(rows * wide);
        let scale = spec.attention_scale;
        for (t, q_rows) in self.tokens.clone().zip(s.q.chunks_exact_mut(group * hd)) {
            let at = t * spec.q_dim() + self.head * group * hd;
            q_rows.iter_mut().zip(&q[at..at + group * hd]).for_each(|(o, v)| *o = scale * v);
        }
        s.sums[..rows * wide].fill(0.0);
        s.state.clear();
        s.state.resize(rows, (f32::NEG_INFINITY, 0.0));
        let seen = |t: usize| self.past + if spec.causal { t - self.start + 1 } else { self.len };
        let hidden = |t: usize| (self.past + t - self.start + 1).saturating_sub(self.window);
        let last = seen(self.tokens.end - 1);
        let learned = self.learned.map_or(0, |l| l.n);
        let own = (hidden(self.tokens.start) / KEYS * KEYS..last).step_by(KEYS).map(|from| (false, from, last));
        for (of_module, from, end) in (0..learned).step_by(KEYS).map(|from| (true, from, learned)).chain(own) {
            let keys = KEYS.min(end - from);
            let load = if of_module { Self::load_learned } else { Self::load };
            // Many queries meet the batch's own keys and values where they lie.
            let direct = match self.memory {
                Memory::Batch(m) if !of_module && rows >= MANY && wide == hd => {
                    Some(m.map(|m| &m[from * spec.kv_dim() + self.head * hd..]))
                }
                _ => None,
            };
            if let Some([k, _]) = direct {
                self.many_scores(&s.q, (k, spec.kv_dim()), rows, keys, &mut s.keys, &mut s.scores);
            } else {
                load(self, 0, from..from + keys, hd, &mut s.block);
                self.scores(s, rows, keys);
            }
            for (i, (row, state)) in s.scores.chunks_exact_mut(KEYS).zip(&mut s.state).enumerate() {
                let t = self.tokens.start + i / group;
                let visible = |n: usize| n.saturating_sub(from).min(keys);
                let (first, end) = if of_module { (0, keys) } else { (visible(hidden(t)), visible(seen(t))) };
                row[..first].fill(0.0);
                row[end..].fill(0.0);
                if first == end {
                    continue;
                }
                if let Some(cap) = spec.attention_cap {
                    self.kernels.soft_cap(&mut row[first..end], cap);
                }
                let (max, sum) = self.kernels.softmax_step(&mut row[first..end], state.0);
                let shrink = if state.0 == max { 1.0 } else { (state.0 - max).exp() };
                if shrink != 1.0 {
                    s.sums[i * wide..(i + 1) * wide].iter_mut().for_each(|v| *v *= shrink);
                }
                *state = (max, state.1 * shrink + sum);
            }
            let (b, ldb) = match direct {
                Some([_, v]) => (v, spec.kv_dim()),
                None => {
                    load(self, 1, from..from + keys, wide, &mut s.block);
                    (&s.block[..], wide)
                }
            };
            let weighted = Gemm { a: &s.scores, lda: KEYS, rows, b, ldb, k: keys, cols: wide, add: true };
            self.kernels.gemm(weighted, &mut s.sums, wide);
        }
        for (i, (_, total)) in s.state.iter().enumerate() {
            let inv = 1.0 / total;
            let (from, to) = (i * wide, i * hd);
            for j in 0..hd {
                s.q[to + j] = s.sums[from + j] * inv;
            }
        }
        for (t, values) in self.tokens.clone().zip(s.q.chunks_exact(group * hd)) {
            store(t, values);
        }
    }

    /// Fills `s.scores [rows, KEYS]` with the scores of the keys in `s.block`.
    fn scores(&self, s: &mut Scratch, rows: usize, keys: usize) {
        let hd = self.spec.head_dim;
        if rows < MANY {
            for (q, scores) in s.q.chunks_exact(hd).zip(s.scores.chunks_exact_mut(KEYS)).take(rows) {
                for (key, score) in s.block.chunks_exact(hd).zip(scores).take(keys) {
                    *score = self.kernels.dot_f32(q, key);
                }
            }
            return;
        }
        self.many_scores(&s.q, (&s.block, hd), rows, keys, &mut s.keys, &mut s.scores);
    }

    /// As [`Block::scores`] for many queries; keys `[keys, head_dim]` lie `pitch` apart.
    fn many_scores(
        &self,
        q: &[f32],
        (k, pitch): (&[f32], usize),
        rows: usize,
        keys: usize,
        turned: &mut [f32],
        scores: &mut [f32],
    ) {
        let (hd, cols) = (self.spec.head_dim, keys.next_multiple_of(Gemm::LANES));
        self.kernels.transpose(k, pitch, keys, hd, turned, KEYS);
        let product = Gemm { a: q, lda: hd, rows, b: turned, ldb: KEYS, k: hd, cols, add: false };
        self.kernels.gemm(product, scores, KEYS);
    }

    /// Loads learned keys (0) or values (1) of this head as `f32`, `width` values apart.
    fn load_learned(&self, which: usize, range: Range<usize>, width: usize, out: &mut [f32]) {
        let Some(learned) = self.learned else { return };
        for (j, out) in range.zip(out.chunks_exact_mut(width)) {
            let row = j * self.spec.n_kv_head + self.head;
            self.kernels.dequantize_row(learned.kv[which], row, &mut out[..self.spec.head_dim]);
        }
    }

    /// Loads keys (0) or values (1) of this head as `f32`, `width` values apart.
    fn load(&self, which: usize, range: Range<usize>, width: usize, out: &mut [f32]) {
        let (hd, kd) = (self.spec.head_dim, self.spec.kv_dim());
        for (j, out) in range.zip(out.chunks_exact_mut(width)) {
            let at = j * kd + self.head * hd..j * kd + (self.head + 1) * hd;
            match self.memory {
                Memory::Batch(m) => out[..hd].copy_from_slice(&m[which][at]),
                Memory::Cache(m) => m[which].load(self.kernels, at, &mut out[..hd]),
            }
        }
    }
}
