//! One decoder layer as one differentiable operator.
//!
//! ```text
//! a  = rms_norm(x)        qkv = Wqkv a + lora     rotate q, k
//! o  = attention(qkv)     m   = x + Wo o + lora
//! b  = rms_norm(m)        gu  = Wgu b + lora
//! h  = silu(gate) · up    y   = m + Wd h + lora
//! ```
//! The backward reads `qkv`, `o`, `m`, `gu` and the low-rank products; `a`, `b` and `h` are
//! computed again, being cheap. What was not kept is all computed again from `x`.

use crate::nn::attention::{Heads, Ragged};
use crate::nn::frozen_weight::FrozenWeight;
use crate::nn::lora::{Dropout, Group, Lora, Plan};
use crate::nn::matmul::View;
use crate::nn::rms_norm::RmsNorm;
use crate::nn::{operand, swiglu, with_numbers};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use conpet_formats::model_spec::ModelSpec;
use conpet_runtime::kernels::Kernels;
use rayon::prelude::*;
use std::sync::{Arc, Mutex, PoisonError};

/// The frozen weights of a layer.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) attn_norm: RmsNorm,
    /// q, k and v one above the other, `[q_dim + 2 kv_dim, hidden]`.
    pub(super) qkv: FrozenWeight,
    /// `[hidden, q_dim]`.
    pub(super) output: FrozenWeight,
    pub(super) ffn_norm: RmsNorm,
    /// gate above up, `[2 ffn, hidden]`.
    pub(super) gate_up: FrozenWeight,
    /// `[hidden, ffn]`.
    pub(super) down: FrozenWeight,
}

impl Frozen {
    fn weight(&self, g: Group) -> &FrozenWeight {
        match g {
            Group::Qkv => &self.qkv,
            Group::Output => &self.output,
            Group::GateUp => &self.gate_up,
            Group::Down => &self.down,
        }
    }
}

/// What all layers of a pass share.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) ffn: usize,
    pub(super) heads: Heads,
    pub(super) batch: Ragged,
    pub(super) dropout: Option<Dropout>,
    pub(super) kernels: Kernels,
    pub(super) threads: usize,
}

/// Kept between forward and backward.
#[derive(Debug)]
struct Saved {
    /// Rotated.
    qkv: Vec<f32>,
    o: Vec<f32>,
    m: Vec<f32>,
    gate_up: Vec<f32>,
    /// `A x` of each group.
    low: [Vec<f32>; 4],
}

/// Bytes a layer keeps for each token.
pub(super) fn kept_per_token(spec: &ModelSpec) -> usize {
    4 * (2 * spec.q_dim() + 2 * spec.kv_dim() + spec.hidden + 2 * spec.ffn)
}

/// The operator: `x [n, hidden]` and the layer's factors (if it has any) to `[n, hidden]`.
#[derive(Debug)]
pub(super) struct LayerOp {
    /// Which layer of the base.
    pub(super) index: usize,
    pub(super) frozen: Arc<Frozen>,
    pub(super) pass: Arc<Pass>,
    /// Where the factors lie in their vector.
    pub(super) plan: Option<Plan>,
    /// Keep what the backward reads.
    pub(super) keep: bool,
    saved: Mutex<Option<Saved>>,
}

impl LayerOp {
    pub(super) fn new(index: usize, frozen: &Arc<Frozen>, pass: &Arc<Pass>, plan: Option<Plan>, keep: bool) -> Self {
        Self { index, frozen: frozen.clone(), pass: pass.clone(), plan, keep, saved: Mutex::new(None) }
    }

    fn lora<'a>(&'a self, vector: &'a [f32]) -> Option<Lora<'a>> {
        let p = &self.pass;
        let (layer, dropout, threads) = (self.index, p.dropout.as_ref(), p.threads);
        self.plan.as_ref().map(|plan| Lora { plan, vector, layer, dropout, threads })
    }

    /// `W x` plus the LoRA's part; and `A x`.
    fn site(&self, g: Group, x: &[f32], lora: Option<&Lora<'_>>) -> (Vec<f32>, Vec<f32>) {
        let w = self.frozen.weight(g);
        let x = View::new(x, w.cols);
        let mut y = w.forward(x, self.pass.threads);
        let low = lora.map(|l| l.forward(g, x, &mut y)).unwrap_or_default();
        (y, low)
    }

    fn run(&self, x: &[f32], lora: Option<&Lora<'_>>) -> (Vec<f32>, Saved) {
        let (p, w) = (&*self.pass, &*self.frozen);
        let (mut qkv, low_qkv) = self.site(Group::Qkv, &w.attn_norm.forward(x), lora);
        p.heads.rotate(&p.batch, &mut qkv, false);
        let o = p.heads.forward(&p.batch, &qkv);
        let (mut m, low_output) = self.site(Group::Output, &o, lora);
        add(&mut m, x);
        let (gate_up, low_gate_up) = self.site(Group::GateUp, &w.ffn_norm.forward(&m), lora);
        let h = swiglu::forward(p.kernels, &gate_up, p.ffn);
        let (mut y, low_down) = self.site(Group::Down, &h, lora);
        add(&mut y, &m);
        (y, Saved { qkv, o, m, gate_up, low: [low_qkv, low_output, low_gate_up, low_down] })
    }

    /// The gradient of a group's input (if wanted), and the group's part of the factors' gradient.
    fn site_backward(
        &self,
        g: Group,
        (x, low, dy): (&[f32], &[f32], &[f32]),
        lora: Option<&Lora<'_>>,
        grad: &mut [f32],
        wants_input: bool,
    ) -> Option<Vec<f32>> {
        let w = self.frozen.weight(g);
        let (x, dy) = (View::new(x, w.cols), View::new(dy, w.rows));
        let mut dx = wants_input.then(|| w.backward(dy, self.pass.threads));
        if let Some(l) = lora {
            l.backward(g, x, low, dy, grad, dx.as_deref_mut());
        }
        dx
    }

    /// Whether a site lies in one of these groups.
    fn learns(&self, groups: &[Group]) -> bool {
        let plan = self.plan.as_ref();
        plan.is_some_and(|p| p.factors().any(|f| groups.iter().any(|g| g.linears().contains(&f.linear))))
    }

    /// Gradients of `x` (if wanted) and of the factors. Stops as far up as nothing below learns.
    fn back(&self, x: &[f32], vector: &[f32], dy: &[f32], wants_input: bool) -> (Option<Vec<f32>>, Vec<f32>) {
        let (p, w) = (&*self.pass, &*self.frozen);
        let lora = self.lora(vector);
        let lora = lora.as_ref();
        let kept = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Saved { qkv, o, m, gate_up, low } = kept.unwrap_or_else(|| self.run(x, lora).1);
        let mut grad = vec![0.0; vector.len()];

        let h = swiglu::forward(p.kernels, &gate_up, p.ffn);
        let below = wants_input || self.learns(&[Group::Qkv, Group::Output, Group::GateUp]);
        let Some(dh) = self.site_backward(Group::Down, (&h, &low[3], dy), lora, &mut grad, below) else {
            return (None, grad);
        };
        drop(h);
        let d_gate_up = swiglu::backward(p.kernels, &gate_up, &dh, p.ffn);
        drop((dh, gate_up));
        let b = w.ffn_norm.forward(&m);
        let below = wants_input || self.learns(&[Group::Qkv, Group::Output]);
        let Some(db) = self.site_backward(Group::GateUp, (&b, &low[2], &d_gate_up), lora, &mut grad, below) else {
            return (None, grad);
        };
        drop((b, d_gate_up));
        let mut dm = dy.to_vec();
        w.ffn_norm.backward(&m, &db, &mut dm);

        let below = wants_input || self.learns(&[Group::Qkv]);
        let Some(d_o) = self.site_backward(Group::Output, (&o, &low[1], &dm), lora, &mut grad, below) else {
            return (None, grad);
        };
        let mut d_qkv = p.heads.backward(&p.batch, &qkv, &d_o);
        p.heads.rotate(&p.batch, &mut d_qkv, true);
        let a = w.attn_norm.forward(x);
        let Some(da) = self.site_backward(Group::Qkv, (&a, &low[0], &d_qkv), lora, &mut grad, wants_input) else {
            return (None, grad);
        };
        w.attn_norm.backward(x, &da, &mut dm);
        (Some(dm), grad)
    }

    fn forward(&self, x: &[f32], shape: &Shape, vector: &[f32]) -> Result<(CpuStorage, Shape)> {
        let hidden = self.frozen.attn_norm.weight.len();
        if shape.dims() != [self.pass.batch.tokens(), hidden] {
            bail!("states of shape {shape:?} for {} tokens of width {hidden}", self.pass.batch.tokens());
        }
        let (y, saved) = self.run(x, self.lora(vector).as_ref());
        if self.keep {
            *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = Some(saved);
        }
        Ok((CpuStorage::F32(y), shape.clone()))
    }
}

fn add(y: &mut [f32], x: &[f32]) {
    const CHUNK: usize = 1 << 14;
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y += x));
}

impl CustomOp1 for LayerOp {
    fn name(&self) -> &'static str {
        "frozen-layer"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(operand(x, l)?, l.shape(), &[])
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        if !x.track_op() {
            return Ok(None);
        }
        let (dx, _) = with_numbers(x, |x| with_numbers(dy, |dy| self.back(x, &[], dy, true)))??;
        dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()
    }
}

impl CustomOp2 for LayerOp {
    fn name(&self) -> &'static str {
        "layer"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout, v: &CpuStorage, vl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (v, want) = (operand(v, vl)?, self.plan.as_ref().map_or(0, |p| p.len));
        if v.len() != want {
            bail!("layer {} trains {want} numbers, not {}", self.index, v.len());
        }
        self.forward(operand(x, l)?, l.shape(), v)
    }

    fn bwd(&self, x: &Tensor, v: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let back = |x_: &[f32], v: &[f32], dy: &[f32]| self.back(x_, v, dy, x.track_op());
        let (dx, dv) = with_numbers(x, |x| with_numbers(v, |v| with_numbers(dy, |dy| back(x, v, dy))))???;
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok((dx, Some(Tensor::from_vec(dv, v.shape(), v.device())?)))
    }
}
