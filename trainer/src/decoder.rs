//! The differentiable layers: the branch layers of a base, decoder or encoder, with a module in force.
//!
//! They compute the same as the runtime's (a test compares them), from the same quantized weights, with
//! gradients only for the module's parameters. Each layer is one operator (`decoder/layer.rs`). Layers whose
//! activations do not fit the memory budget recompute them from their input in the backward pass.

mod layer;

use crate::nn::attention::{Heads, Ragged};
use crate::nn::frozen_weight::{FrozenLinear, FrozenWeight, QuantWeight};
use crate::nn::gate::Gate;
use crate::nn::lm_loss::LmHead;
use crate::nn::norm::Norm;
use crate::pet::prompt::WithRows;
use crate::pet::{Dropout, Group, TrainedModule};
use candle_core::{Result, Tensor};
use conpet_formats::model_spec::{ModelSpec, Norm as Which};
use conpet_runtime::base::{Base, LayerRef, Linear};
use conpet_runtime::engine::Engine;
use conpet_runtime::kernels::{Kernels, MatrixRef};
use layer::{Frozen, LayerOp, Pass, kept_per_token};
use std::sync::Arc;

/// How frozen weights are held while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightMode {
    /// Dense `f32`: fastest; four bytes for each weight of the branch layers.
    Dense,
    /// Quantized as in the file: smallest.
    Quant,
    /// Dense if the branch layers take at most this many bytes.
    Auto(usize),
}

/// The frozen layers `first..n_layer` of a base, for training.
#[derive(Debug)]
pub struct Decoder {
    /// The shape of the base.
    pub spec: ModelSpec,
    /// The first layer it runs; those below are the trunk.
    pub first: usize,
    /// The base itself.
    pub base: Arc<Base>,
    layers: Vec<Arc<Frozen>>,
    output_norm: Option<Norm>,
    /// The output head, of a base that predicts tokens.
    output: Option<Arc<FrozenWeight>>,
    kernels: Kernels,
    /// Number of threads.
    pub threads: usize,
}

/// How a pass is run while training.
#[derive(Debug, Clone)]
pub struct Training {
    /// Threads that multiply.
    pub threads: usize,
    /// Bytes of activations that layers may keep for the backward pass; the lower layers, which do not fit,
    /// recompute theirs. `None` keeps all.
    pub activation_bytes: Option<usize>,
    /// Dropout of the LoRA's inputs.
    pub dropout: Option<Dropout>,
}

impl Default for Training {
    fn default() -> Self {
        Self { threads: 1, activation_bytes: None, dropout: None }
    }
}

impl Decoder {
    /// Loads the layers from `first` on of an engine's base.
    pub fn new(engine: &Engine, first: usize, mode: WeightMode) -> Self {
        let base = &engine.base;
        let spec = base.spec.clone();
        let numbers: usize = spec.linears().map(|l| spec.shape(l).0 * spec.shape(l).1).sum();
        let numbers = numbers * (spec.n_layer - first);
        let dense = match mode {
            WeightMode::Dense => true,
            WeightMode::Quant => false,
            WeightMode::Auto(most) => numbers * 4 <= most,
        };
        let kernels = engine.cpu().kernels;
        let frozen = |parts: &[MatrixRef<'_>], dense: bool| {
            let located = parts.iter().map(|m| located(base, *m)).collect();
            let w = FrozenWeight::quantized(parts[0].cols, located, kernels);
            if dense { w.into_dense() } else { w }
        };
        let layers = (first..spec.n_layer).map(|l| {
            let w = base.layer(l);
            let weight = |which: &[Linear]| {
                let parts: Vec<MatrixRef<'_>> = which.iter().map(|x| w.linear(*x)).collect();
                frozen(&parts, dense).with_bias(bias(&w, which))
            };
            let norm = |which: Which| w.norm(which).map(|n| Norm::new(n, kernels));
            let of_heads = norm(Which::Q).zip(norm(Which::K)).map(|(q, k)| [q, k]);
            let group = |g: Group| weight(&g.linears(&spec));
            Arc::new(Frozen {
                hidden: spec.hidden,
                residual_scale: spec.residual_scale,
                norms: Which::ALL.map(norm),
                qkv: group(Group::Qkv),
                heads: Heads::new(&spec, l, of_heads, kernels),
                output: group(Group::Output),
                gate_up: group(Group::GateUp),
                down: group(Group::Down),
            })
        });
        Self {
            first,
            base: base.clone(),
            layers: layers.collect(),
            output_norm: base.output_norm().map(|n| Norm::new(n, kernels)),
            // The head is read only once for each batch of answers, which is not worth 100 MB of dense weights.
            output: spec.causal.then(|| Arc::new(frozen(&[base.output()], false))),
            spec,
            kernels,
            threads: engine.cpu().threads.n(),
        }
    }

    /// Takes states `[tokens, hidden]` after the trunk to states after the last layer (before the final norm).
    pub fn forward(&self, hidden: &Tensor, batch: &Ragged, module: &TrainedModule, how: &Training) -> Result<Tensor> {
        let Some(rows) = module.prompt() else { return self.layers(hidden, batch, module, how) };
        let with = WithRows::new(&self.spec, rows, hidden, batch)?;
        self.layers(&with.hidden, &with.batch, module, how)?.index_select(&with.own, 0)
    }

    fn layers(&self, hidden: &Tensor, batch: &Ragged, module: &TrainedModule, how: &Training) -> Result<Tensor> {
        let n = self.layers.len();
        let one = (kept_per_token(&self.spec) * batch.tokens()).max(1);
        let kept = how.activation_bytes.map_or(n, |bytes| bytes / one);
        let pass = Arc::new(Pass {
            gate: Gate {
                activation: self.spec.activation,
                gated: self.spec.gated,
                width: self.spec.ffn,
                kernels: self.kernels,
            },
            batch: batch.clone(),
            dropout: how.dropout.clone(),
            kernels: self.kernels,
            threads: how.threads,
        });
        let mut x = hidden.clone();
        for (i, frozen) in self.layers.iter().enumerate() {
            let index = self.first + i;
            let factors = module.layer(&self.spec, index)?;
            let keep = (x.track_op() || factors.is_some()) && i + kept >= n;
            x = match factors {
                Some((plan, v)) => x.apply_op2(&v, LayerOp::new(index, frozen, &pass, Some(plan), keep))?,
                None => x.apply_op1(LayerOp::new(index, frozen, &pass, None, keep))?,
            };
        }
        Ok(x)
    }

    /// Applies the final norm, if the base has one.
    pub fn final_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        self.output_norm.as_ref().map_or_else(|| Ok(hidden.clone()), |n| n.apply(hidden))
    }

    /// The frozen output head `[vocab, hidden]`, and what becomes of its product.
    ///
    /// # Panics
    /// If the base is an encoder.
    pub fn output(&self) -> LmHead {
        let weight = self.output.clone().expect("only decoders predict tokens");
        LmHead { weight, scale: self.spec.output.scale, cap: self.spec.output.cap }
    }

    /// Next-token logits `[n, vocab]` of normed states.
    pub fn logits(&self, normed: &Tensor) -> Result<Tensor> {
        let LmHead { weight, scale, cap } = self.output();
        let logits = (normed.apply_op1(FrozenLinear { weight, threads: self.threads })? * f64::from(scale))?;
        match cap.map(f64::from) {
            None => Ok(logits),
            Some(cap) => (logits / cap)?.tanh()? * cap,
        }
    }
}

/// The biases of linears that read the same input, concatenated; empty if they have none.
fn bias(layer: &LayerRef<'_>, which: &[Linear]) -> Vec<f32> {
    if which.iter().all(|l| layer.bias(*l).is_none()) {
        return Vec::new();
    }
    let own = |l: &Linear| layer.bias(*l).map_or_else(|| vec![0.0; layer.linear(*l).rows], <[f32]>::to_vec);
    which.iter().flat_map(own).collect()
}

/// A borrowed matrix as a range of one of the base's maps.
fn located(base: &Base, m: MatrixRef<'_>) -> QuantWeight {
    let (map, bytes) = base.files().locate(m.data);
    QuantWeight { map: map.clone(), bytes, ty: m.ty, rows: m.rows }
}

#[cfg(test)]
pub(crate) mod tests;
