//! One layer as one differentiable operator.
//!
//! ```text
//! a  = (norm) x           qkv = Wqkv a            (norm,) (rotate) q, k
//! o  = attention(qkv)     z   = Wo o              m = (norm) (x + s · (norm) z)
//! b  = (norm) m           gu  = Wgu b
//! h  = f(gate) · up       z   = Wd h              y = (norm) (m + s · (norm) z)
//! ```
//! The steps in parentheses exist only in some families ([`ModelSpec`]). A module's parts act at the points
//! between the steps (`pet.rs`). The backward pass reads `qkv`, `o`, `m`, `gu`, the inputs of the norms after
//! them, and what the parts kept; `a`, `b` and `h` are cheap and recomputed. A layer that kept nothing
//! recomputes everything from `x`.

use crate::nn::attention::{Heads, Learned, Ragged};
use crate::nn::frozen_weight::FrozenWeight;
use crate::nn::gate::Gate;
use crate::nn::matmul::View;
use crate::nn::norm::Norm;
use crate::nn::{operand, with_numbers};
use crate::pet::act::At;
use crate::pet::{Dropout, Group, Plan, Point};
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use conpet_formats::model_spec::{ModelSpec, Norm as Which};
use conpet_runtime::kernels::Kernels;
use rayon::prelude::*;
use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

/// The frozen weights of a layer.
#[derive(Debug)]
pub(super) struct Frozen {
    /// Width of the residual stream.
    pub(super) hidden: usize,
    /// Factor on what a sublayer adds to it.
    pub(super) residual_scale: f32,
    /// The layer's norms but those of queries and keys, each where the base has it.
    pub(super) norms: [Option<Norm>; Which::ALL.len()],
    /// q, k and v stacked, `[q_dim + 2 kv_dim, hidden]`.
    pub(super) qkv: FrozenWeight,
    pub(super) heads: Heads,
    /// `[hidden, q_dim]`.
    pub(super) output: FrozenWeight,
    /// gate (in bases that have one) and up stacked, `[2 ffn, hidden]`.
    pub(super) gate_up: FrozenWeight,
    /// `[hidden, ffn]`.
    pub(super) down: FrozenWeight,
}

impl Frozen {
    fn norm(&self, which: Which) -> Option<&Norm> {
        self.norms[which as usize].as_ref()
    }

    fn weight(&self, g: Group) -> &FrozenWeight {
        match g {
            Group::Qkv => &self.qkv,
            Group::Output => &self.output,
            Group::GateUp => &self.gate_up,
            Group::Down => &self.down,
        }
    }
}

/// Data that all layers of a pass share.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) gate: Gate,
    pub(super) batch: Ragged,
    pub(super) dropout: Option<Dropout>,
    pub(super) kernels: Kernels,
    pub(super) threads: usize,
}

/// What each part of a module keeps at a point for the backward pass.
type Kept = Vec<Vec<f32>>;

/// Activations kept between the forward and the backward pass.
#[derive(Debug)]
struct Saved {
    /// q, k and v before normalisation, if they are normalised; else empty.
    raw: Vec<f32>,
    /// q, k and v, normalised and rotated.
    qkv: Vec<f32>,
    o: Vec<f32>,
    m: Vec<f32>,
    gate_up: Vec<f32>,
    /// Inputs of the norms of what attention and the feed-forward layer give, if there are such norms.
    outputs: [Vec<f32>; 2],
    /// Inputs of the norms of the residual stream after each, if there are such norms.
    sums: [Vec<f32>; 2],
    /// What the parts kept, at the points whose states are not recomputed.
    parts: [Kept; Point::N],
}

/// Bytes of activations that a layer keeps for each token.
pub(super) fn kept_per_token(spec: &ModelSpec) -> usize {
    let qkv = spec.q_dim() + 2 * spec.kv_dim();
    let raw = if spec.has(Which::Q) { qkv } else { 0 };
    let more = [Which::PostAttn, Which::PostFfn, Which::AttnSum, Which::FfnSum];
    let more = more.into_iter().filter(|n| spec.has(*n)).count() * spec.hidden;
    let inner = if spec.gated { 2 * spec.ffn } else { spec.ffn };
    4 * (qkv + raw + spec.q_dim() + spec.hidden + inner + more)
}

/// The operator from `x [n, hidden]` and the layer's vector of parameters (if it has one) to `[n, hidden]`.
#[derive(Debug)]
pub(super) struct LayerOp {
    /// Index of the layer in the base.
    pub(super) index: usize,
    pub(super) frozen: Arc<Frozen>,
    pub(super) pass: Arc<Pass>,
    /// The parts that act here, and where their parameters lie in the vector.
    pub(super) plan: Option<Plan>,
    /// Whether activations are kept for the backward pass.
    pub(super) keep: bool,
    saved: Mutex<Option<Saved>>,
}

impl LayerOp {
    pub(super) fn new(index: usize, frozen: &Arc<Frozen>, pass: &Arc<Pass>, plan: Option<Plan>, keep: bool) -> Self {
        Self { index, frozen: frozen.clone(), pass: pass.clone(), plan, keep, saved: Mutex::new(None) }
    }

    /// Whether anything is trained at or before a point.
    fn learns_until(&self, point: Point) -> bool {
        self.plan.as_ref().is_some_and(|p| p.learns_until(point))
    }

    fn at<'a>(&'a self, vector: &'a [f32], point: Point) -> At<'a> {
        let p = &self.pass;
        let (kernels, threads) = (p.kernels, p.threads);
        At { vector, layer: self.index, point, dropout: p.dropout.as_ref(), kernels, threads }
    }

    /// Applies the module to `y` at a point; `x`, with rows of `width`, is the input of the step before it.
    fn act(&self, v: &[f32], point: Point, (x, width): (&[f32], usize), y: &mut [f32]) -> Kept {
        let plan = self.plan.as_ref();
        plan.map(|p| p.forward(&self.at(v, point), View::new(x, width), y)).unwrap_or_default()
    }

    /// Turns `dy` into the gradient of `y` as it was before [`LayerOp::act`].
    fn act_back(
        &self,
        point: Point,
        ((x, width), kept): ((&[f32], usize), &Kept),
        dy: &mut [f32],
        (v, grad): (&[f32], &mut [f32]),
        dx: Option<&mut [f32]>,
    ) {
        if let Some(p) = &self.plan {
            p.backward(&self.at(v, point), View::new(x, width), kept, dy, grad, dx);
        }
    }

    /// What a sublayer reads: `x` itself, or its norm, and the parts that act after that.
    fn before<'x>(&self, v: &[f32], point: Point, which: Which, x: &'x [f32]) -> (Cow<'x, [f32]>, Kept) {
        let Some(norm) = self.frozen.norm(which) else { return (x.into(), Vec::new()) };
        let mut y = norm.forward(x);
        let kept = self.act(v, point, (x, self.frozen.hidden), &mut y);
        (y.into(), kept)
    }

    /// Adds to `dx` the gradient of [`LayerOp::before`]'s input, given that of its result.
    fn before_back(&self, which: Which, x: &[f32], dy: &[f32], dx: &mut [f32]) {
        match self.frozen.norm(which) {
            Some(norm) => norm.backward(x, dy, dx),
            None => add(dx, dy),
        }
    }

    /// Computes `f(gate) · up`, and applies the parts that act on it.
    fn hidden(&self, v: &[f32], gate_up: &[f32]) -> (Vec<f32>, Kept) {
        let mut h = self.pass.gate.forward(gate_up);
        let kept = self.act(v, Point::Hidden, (&[], 1), &mut h);
        (h, kept)
    }

    /// Computes `W x`, and applies the parts that act after it.
    fn site(&self, v: &[f32], g: Group, x: &[f32]) -> (Vec<f32>, Kept) {
        let w = self.frozen.weight(g);
        let mut y = w.forward(View::new(x, w.cols), self.pass.threads);
        let kept = self.act(v, Point::after(g), (x, w.cols), &mut y);
        (y, kept)
    }

    /// Applies a norm after a step, if there is one; returns the result, and the norm's input (empty without a
    /// norm).
    fn after(&self, which: Which, z: Vec<f32>) -> (Vec<f32>, Vec<f32>) {
        match self.frozen.norm(which) {
            Some(norm) => (norm.forward(&z), z),
            None => (z, Vec::new()),
        }
    }

    /// Turns the gradient of [`LayerOp::after`]'s result into that of its input `z`.
    fn after_back(&self, which: Which, z: &[f32], dz: Vec<f32>) -> Vec<f32> {
        let Some(norm) = self.frozen.norm(which) else { return dz };
        let mut dx = vec![0.0; z.len()];
        norm.backward(z, &dz, &mut dx);
        dx
    }

    /// Multiplies by the factor on what a sublayer adds.
    fn scaled(&self, z: &mut [f32]) {
        if self.frozen.residual_scale != 1.0 {
            z.par_chunks_mut(1 << 14).for_each(|z| z.iter_mut().for_each(|v| *v *= self.frozen.residual_scale));
        }
    }

    fn learned<'a>(&self, v: &'a [f32]) -> Option<Learned<'a>> {
        self.plan.as_ref()?.learned.as_ref().map(|at| at.each_ref().map(|r| &v[r.clone()]))
    }

    fn run(&self, x: &[f32], v: &[f32]) -> (Vec<f32>, Saved) {
        let (p, w) = (&*self.pass, &*self.frozen);
        let width = w.hidden;
        let mut parts: [Kept; Point::N] = std::array::from_fn(|_| Vec::new());
        let mut keep = |point: Point, kept: Kept| parts[point as usize] = kept;
        let (a, _) = self.before(v, Point::AttnNorm, Which::Attn, x);
        let (mut qkv, kept) = self.site(v, Group::Qkv, &a);
        keep(Point::Qkv, kept);
        let raw = if w.heads.normalises() { qkv.clone() } else { Vec::new() };
        w.heads.normalise(&mut qkv);
        w.heads.rotate(&p.batch, &mut qkv, false);
        let o = w.heads.forward(&p.batch, &qkv, self.learned(v));
        let (z, kept) = self.site(v, Group::Output, &o);
        keep(Point::Output, kept);
        let (mut m, attn_out) = self.after(Which::PostAttn, z);
        keep(Point::AttnAdd, self.act(v, Point::AttnAdd, (&a, width), &mut m));
        drop(a);
        self.scaled(&mut m);
        add(&mut m, x);
        let (m, attn_sum) = self.after(Which::AttnSum, m);
        let (b, _) = self.before(v, Point::FfnNorm, Which::Ffn, &m);
        let (gate_up, kept) = self.site(v, Group::GateUp, &b);
        keep(Point::GateUp, kept);
        let (h, _) = self.hidden(v, &gate_up);
        let (z, kept) = self.site(v, Group::Down, &h);
        keep(Point::Down, kept);
        let (mut y, ffn_out) = self.after(Which::PostFfn, z);
        keep(Point::FfnAdd, self.act(v, Point::FfnAdd, (&b, width), &mut y));
        self.scaled(&mut y);
        add(&mut y, &m);
        let (mut y, ffn_sum) = self.after(Which::FfnSum, y);
        keep(Point::Layer, self.act(v, Point::Layer, (&m, width), &mut y));
        (y, Saved { raw, qkv, o, m, gate_up, outputs: [attn_out, ffn_out], sums: [attn_sum, ffn_sum], parts })
    }

    /// Returns the gradient of a group's input (if wanted) and adds the parts' gradients to `grad`. `dy` is
    /// overwritten.
    fn site_back(
        &self,
        g: Group,
        (x, kept): (&[f32], &Kept),
        dy: &mut [f32],
        (v, grad): (&[f32], &mut [f32]),
        wanted: bool,
    ) -> Option<Vec<f32>> {
        let w = self.frozen.weight(g);
        let acts = self.plan.as_ref().is_some_and(|p| p.acts(Point::after(g)));
        let mut of_parts = (wanted && acts).then(|| vec![0.0; x.len()]);
        self.act_back(Point::after(g), ((x, w.cols), kept), dy, (v, grad), of_parts.as_deref_mut());
        wanted.then(|| {
            let mut dx = w.backward(View::new(dy, w.rows), self.pass.threads);
            if let Some(more) = of_parts {
                add(&mut dx, &more);
            }
            dx
        })
    }

    /// Gradients of `x` (if wanted) and of the vector. Stops at the point below which nothing is trained.
    fn back(&self, x: &[f32], v: &[f32], dy: &[f32], wants_input: bool) -> (Option<Vec<f32>>, Vec<f32>) {
        let (p, w) = (&*self.pass, &*self.frozen);
        let width = w.hidden;
        let kept = self.saved.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Saved { raw, qkv, o, m, gate_up, outputs, sums, parts } = kept.unwrap_or_else(|| self.run(x, v).1);
        let mut grad = vec![0.0; v.len()];
        let kept = |point: Point| &parts[point as usize];
        let below = |point: Point| wants_input || self.learns_until(point);

        let mut dm = dy.to_vec();
        self.act_back(Point::Layer, ((&m, width), kept(Point::Layer)), &mut dm, (v, &mut grad), None);
        let mut dm = self.after_back(Which::FfnSum, &sums[1], dm);
        let mut dz = dm.clone();
        self.scaled(&mut dz);
        let (b, kept_b) = self.before(v, Point::FfnNorm, Which::Ffn, &m);
        let mut db = vec![0.0; b.len()];
        self.act_back(Point::FfnAdd, ((&b, width), kept(Point::FfnAdd)), &mut dz, (v, &mut grad), Some(&mut db));
        let mut dz = self.after_back(Which::PostFfn, &outputs[1], dz);
        let (h, kept_h) = self.hidden(v, &gate_up);
        let down = (&h[..], kept(Point::Down));
        let Some(mut dh) = self.site_back(Group::Down, down, &mut dz, (v, &mut grad), below(Point::Hidden)) else {
            return (None, grad);
        };
        self.act_back(Point::Hidden, ((&[], 1), &kept_h), &mut dh, (v, &mut grad), None);
        drop((h, kept_h));
        if !below(Point::GateUp) {
            return (None, grad);
        }
        let mut d_gate_up = p.gate.backward(&gate_up, &dh);
        drop((dh, gate_up));
        let entry = (&b[..], kept(Point::GateUp));
        let Some(part) = self.site_back(Group::GateUp, entry, &mut d_gate_up, (v, &mut grad), below(Point::FfnNorm))
        else {
            return (None, grad);
        };
        drop(d_gate_up);
        add(&mut db, &part);
        drop(b);
        self.act_back(Point::FfnNorm, ((&m, width), &kept_b), &mut db, (v, &mut grad), None);
        if !below(Point::AttnAdd) {
            return (None, grad);
        }
        self.before_back(Which::Ffn, &m, &db, &mut dm);

        let mut dm = self.after_back(Which::AttnSum, &sums[0], dm);
        let mut dz = dm.clone();
        self.scaled(&mut dz);
        let (a, kept_a) = self.before(v, Point::AttnNorm, Which::Attn, x);
        let mut da = vec![0.0; a.len()];
        self.act_back(Point::AttnAdd, ((&a, width), kept(Point::AttnAdd)), &mut dz, (v, &mut grad), Some(&mut da));
        let mut dz = self.after_back(Which::PostAttn, &outputs[0], dz);
        let output = (&o[..], kept(Point::Output));
        let Some(d_o) = self.site_back(Group::Output, output, &mut dz, (v, &mut grad), below(Point::Attention)) else {
            return (None, grad);
        };
        let learned = self.plan.as_ref().and_then(|p| p.learned.clone()).unwrap_or([0..0, 0..0]);
        let [mut dk, mut dv] = learned.each_ref().map(|r| vec![0.0; r.len()]);
        let mut d_qkv = w.heads.backward(&p.batch, &qkv, self.learned(v), &d_o, [&mut dk, &mut dv]);
        for (at, d) in learned.into_iter().zip([dk, dv]) {
            grad[at].copy_from_slice(&d);
        }
        if !below(Point::Qkv) {
            return (None, grad);
        }
        w.heads.rotate(&p.batch, &mut d_qkv, true);
        w.heads.normalise_back(&raw, &mut d_qkv);
        let entry = (&a[..], kept(Point::Qkv));
        let Some(part) = self.site_back(Group::Qkv, entry, &mut d_qkv, (v, &mut grad), below(Point::AttnNorm)) else {
            return (None, grad);
        };
        add(&mut da, &part);
        self.act_back(Point::AttnNorm, ((x, width), &kept_a), &mut da, (v, &mut grad), None);
        if !wants_input {
            return (None, grad);
        }
        self.before_back(Which::Attn, x, &da, &mut dm);
        (Some(dm), grad)
    }

    fn forward(&self, x: &[f32], shape: &Shape, vector: &[f32]) -> Result<(CpuStorage, Shape)> {
        let hidden = self.frozen.hidden;
        if shape.dims() != [self.pass.batch.tokens(), hidden] {
            bail!("states of shape {shape:?} for {} tokens of width {hidden}", self.pass.batch.tokens());
        }
        let (y, saved) = self.run(x, vector);
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
            bail!("layer {} trains {want} parameters, not {}", self.index, v.len());
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
