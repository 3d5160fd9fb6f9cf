//! Causal grouped-query attention over a ragged batch, rotary embedding included.
//!
//! Inputs are the projections before rotation: `q [n, heads·d]`, `k, v [n, kv_heads·d]`. Each
//! sequence attends to itself only, from position 0. The backward computes the probabilities
//! again instead of keeping them.

use super::{floats, numbers, stored};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor};
use conpet_formats::model_spec::{ModelSpec, RopeKind};
use conpet_runtime::forward::rope_table;
use conpet_runtime::kernels::Kernels;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

/// The shape of a batch: where its sequences lie, and the rotary tables they need.
#[derive(Debug, Clone)]
pub struct Ragged {
    rows: Arc<Vec<Range<usize>>>,
    /// `[longest, rope_dim]`.
    rope: Arc<Vec<f32>>,
}

impl Ragged {
    /// For sequences of these lengths, one after another.
    pub fn new(spec: &ModelSpec, lens: &[usize]) -> Self {
        let longest = lens.iter().copied().max().unwrap_or(0);
        let mut rope = vec![0.0; longest * spec.rope_dim];
        rope.chunks_exact_mut(spec.rope_dim).enumerate().for_each(|(p, t)| rope_table(spec, p, t));
        let rows = lens
            .iter()
            .scan(0, |at, n| {
                let start = *at;
                *at += n;
                Some(start..*at)
            })
            .collect();
        Self { rows: Arc::new(rows), rope: Arc::new(rope) }
    }

    /// Token ranges of the sequences.
    pub fn rows(&self) -> &[Range<usize>] {
        &self.rows
    }
}

struct Attention {
    batch: Ragged,
    kernels: Kernels,
    heads: usize,
    kv_heads: usize,
    d: usize,
    rope_dim: usize,
    kind: RopeKind,
}

/// Attention of a layer.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, spec: &ModelSpec, batch: &Ragged) -> Result<Tensor> {
    let op = Attention {
        batch: batch.clone(),
        kernels: Kernels::detect(),
        heads: spec.n_head,
        kv_heads: spec.n_kv_head,
        d: spec.head_dim,
        rope_dim: spec.rope_dim,
        kind: spec.rope,
    };
    q.apply_op3(k, v, op)
}

impl Attention {
    /// Rotates the heads of one sequence; backwards with `inverse`.
    fn rotate(&self, x: &mut [f32], width: usize, inverse: bool) {
        for (row, table) in x.chunks_exact_mut(width).zip(self.batch.rope.chunks_exact(self.rope_dim)) {
            if inverse {
                let back: Vec<f32> = table.chunks_exact(2).flat_map(|cs| [cs[0], -cs[1]]).collect();
                self.kernels.rope(row, self.d, &back, self.kind);
            } else {
                self.kernels.rope(row, self.d, table, self.kind);
            }
        }
    }

    /// Probabilities of query `i` of one head over keys `0..=i`.
    fn probabilities(&self, q: &[f32], k: &[f32], i: usize, kv: usize, p: &mut Vec<f32>) {
        let (d, kw) = (self.d, self.kv_heads * self.d);
        let scale = 1.0 / (d as f32).sqrt();
        p.clear();
        p.extend((0..=i).map(|j| scale * self.kernels.dot_f32(q, &k[j * kw + kv * d..][..d])));
        self.kernels.softmax(p);
    }

    /// One sequence: `out [t, heads·d]`.
    fn forward(&self, q: &[f32], k: &[f32], v: &[f32], out: &mut [f32]) {
        let (d, qw, kw) = (self.d, self.heads * self.d, self.kv_heads * self.d);
        let (mut q, mut k) = (q.to_vec(), k.to_vec());
        self.rotate(&mut q, qw, false);
        self.rotate(&mut k, kw, false);
        let mut p = Vec::new();
        for i in 0..q.len() / qw {
            for h in 0..self.heads {
                let kv = h / (self.heads / self.kv_heads);
                self.probabilities(&q[i * qw + h * d..][..d], &k, i, kv, &mut p);
                let o = &mut out[i * qw + h * d..][..d];
                p.iter().enumerate().for_each(|(j, a)| self.kernels.axpy_f32(o, *a, &v[j * kw + kv * d..][..d]));
            }
        }
    }

    /// One sequence's gradients, added to `dq`, `dk`, `dv`.
    fn backward(
        &self,
        (q, k, v): (&[f32], &[f32], &[f32]),
        dy: &[f32],
        (dq, dk, dv): (&mut [f32], &mut [f32], &mut [f32]),
    ) {
        let (d, qw, kw) = (self.d, self.heads * self.d, self.kv_heads * self.d);
        let scale = 1.0 / (d as f32).sqrt();
        let (mut q, mut k) = (q.to_vec(), k.to_vec());
        self.rotate(&mut q, qw, false);
        self.rotate(&mut k, kw, false);
        let (mut p, mut dp) = (Vec::new(), Vec::new());
        for i in 0..q.len() / qw {
            for h in 0..self.heads {
                let kv = h / (self.heads / self.kv_heads);
                let qi = &q[i * qw + h * d..][..d];
                let g = &dy[i * qw + h * d..][..d];
                self.probabilities(qi, &k, i, kv, &mut p);
                dp.clear();
                dp.extend((0..=i).map(|j| self.kernels.dot_f32(g, &v[j * kw + kv * d..][..d])));
                let mean: f32 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
                for j in 0..=i {
                    let at = j * kw + kv * d..j * kw + (kv + 1) * d;
                    self.kernels.axpy_f32(&mut dv[at.clone()], p[j], g);
                    let ds = scale * p[j] * (dp[j] - mean);
                    self.kernels.axpy_f32(&mut dq[i * qw + h * d..][..d], ds, &k[at.clone()]);
                    self.kernels.axpy_f32(&mut dk[at], ds, qi);
                }
            }
        }
        self.rotate(dq, qw, true);
        self.rotate(dk, kw, true);
    }

    /// Splits a buffer of `width` numbers a token into one slice for each sequence.
    fn per_row<'a>(&self, mut data: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
        self.batch
            .rows
            .iter()
            .map(|r| {
                let (head, tail) = std::mem::take(&mut data).split_at_mut(r.len() * width);
                data = tail;
                head
            })
            .collect()
    }
}

impl CustomOp3 for Attention {
    fn name(&self) -> &'static str {
        "ragged-attention"
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        lq: &Layout,
        k: &CpuStorage,
        lk: &Layout,
        v: &CpuStorage,
        lv: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (q, k, v) = (floats(q, lq)?, floats(k, lk)?, floats(v, lv)?);
        let (qw, kw) = (self.heads * self.d, self.kv_heads * self.d);
        let mut out = vec![0.0; q.len()];
        self.per_row(&mut out, qw).into_par_iter().zip(self.batch.rows.par_iter()).for_each(|(o, r)| {
            let kv = r.start * kw..r.end * kw;
            self.forward(&q[r.start * qw..r.end * qw], &k[kv.clone()], &v[kv], o);
        });
        Ok(stored(out, lq.shape().clone()))
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (qs, ks, vs, g) = (numbers(q)?, numbers(k)?, numbers(v)?, numbers(dy)?);
        let (qw, kw) = (self.heads * self.d, self.kv_heads * self.d);
        let (mut dq, mut dk, mut dv) = (vec![0.0; qs.len()], vec![0.0; ks.len()], vec![0.0; vs.len()]);
        let parts: Vec<_> = self
            .per_row(&mut dq, qw)
            .into_iter()
            .zip(self.per_row(&mut dk, kw))
            .zip(self.per_row(&mut dv, kw))
            .zip(self.batch.rows.iter())
            .collect();
        parts.into_par_iter().for_each(|(((dq, dk), dv), r)| {
            let (qr, kr) = (r.start * qw..r.end * qw, r.start * kw..r.end * kw);
            self.backward((&qs[qr.clone()], &ks[kr.clone()], &vs[kr]), &g[qr], (dq, dk, dv));
        });
        let wrap = |v: Vec<f32>, like: &Tensor| Tensor::from_vec(v, like.shape(), like.device()).map(Some);
        Ok((wrap(dq, q)?, wrap(dk, k)?, wrap(dv, v)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{gradients, wave};

    #[test]
    fn gradients_are_exact_for_both_kinds_of_rotation() {
        for rope in [RopeKind::Adjacent, RopeKind::Halves] {
            let spec = ModelSpec {
                arch: "llama".into(),
                name: String::new(),
                n_layer: 1,
                hidden: 16,
                n_head: 4,
                n_kv_head: 2,
                head_dim: 4,
                ffn: 8,
                vocab: 8,
                context: 16,
                norm_eps: 1e-5,
                rope_base: 100.0,
                rope_dim: 4,
                rope,
                tied: true,
            };
            let batch = Ragged::new(&spec, &[3, 1, 2]);
            let inputs =
                [(wave(6 * 16, 0.0), vec![6, 16]), (wave(6 * 8, 1.0), vec![6, 8]), (wave(6 * 8, 2.0), vec![6, 8])];
            gradients(&inputs, |t| attention(&t[0], &t[1], &t[2], &spec, &batch));
        }
    }
}
