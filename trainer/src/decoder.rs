//! The differentiable decoder: the branch layers of a llama-family base with a LoRA in force.
//!
//! It computes what [`conpet_runtime::forward`] computes (a test holds them together), from the
//! same quantized weights, with gradients for the LoRA factors and nothing else.

use crate::nn::attention::{Ragged, attention};
use crate::nn::linear::{FrozenWeight, QuantWeight, linear};
use crate::nn::rms_norm::rms_norm;
use crate::nn::swiglu::swiglu;
use candle_core::{Result, Tensor, Var};
use conpet_formats::model_spec::ModelSpec;
use conpet_runtime::base::{Base, Linear};
use conpet_runtime::engine::Engine;
use conpet_runtime::kernels::{Kernels, MatrixRef};
use conpet_runtime::threads::Threads;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How frozen weights are held while training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightMode {
    /// Dense `f32`: fastest; four bytes for each number of the branch layers.
    Dense,
    /// As in the file: smallest.
    Quant,
    /// Dense if the branch layers take at most this many bytes.
    Auto(usize),
}

/// Frozen layers `first..n_layer` of a base.
#[derive(Debug)]
pub struct Decoder {
    /// The base's numbers.
    pub spec: ModelSpec,
    /// The first layer it runs; those below are the trunk.
    pub first: usize,
    layers: Vec<Layer>,
    output_norm: Arc<Vec<f32>>,
    output: FrozenWeight,
}

#[derive(Debug)]
struct Layer {
    attn_norm: Arc<Vec<f32>>,
    ffn_norm: Arc<Vec<f32>>,
    linears: Vec<FrozenWeight>,
}

/// LoRA factors being trained, by site.
#[derive(Debug, Clone, Default)]
pub struct Adapters {
    /// `s` in `y = Wx + s·B(Ax)`.
    pub scale: f64,
    /// `A [r, in]` and `B [out, r]` of each site.
    pub sites: BTreeMap<String, (Var, Var)>,
}

impl Adapters {
    fn at(&self, layer: usize, short: &str) -> Option<(&Tensor, &Tensor, f64)> {
        let (a, b) = self.sites.get(&format!("blk.{layer}.{short}.weight"))?;
        Some((a.as_tensor(), b.as_tensor(), self.scale))
    }
}

impl Decoder {
    /// Takes the layers from `first` on out of an engine's base.
    ///
    /// # Errors
    /// If a weight cannot be made.
    pub fn new(engine: &Engine, first: usize, mode: WeightMode) -> Result<Self> {
        let base = &engine.base;
        let spec = base.spec.clone();
        let numbers: usize = spec.linears().iter().map(|(_, o, i)| o * i).sum::<usize>() * (spec.n_layer - first);
        let dense = match mode {
            WeightMode::Dense => true,
            WeightMode::Quant => false,
            WeightMode::Auto(most) => numbers * 4 <= most,
        };
        let threads = Arc::new(Threads::new(engine.threads.n()));
        let weight = |m: MatrixRef<'_>, dense: bool| frozen(base, m, engine.kernels, &threads, dense);
        let layers = (first..spec.n_layer)
            .map(|l| {
                let w = base.layer(l);
                Ok(Layer {
                    attn_norm: Arc::new(w.attn_norm.to_vec()),
                    ffn_norm: Arc::new(w.ffn_norm.to_vec()),
                    linears: Linear::ALL.iter().map(|x| weight(w.linear(*x), dense)).collect::<Result<_>>()?,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            first,
            layers,
            output_norm: Arc::new(base.output_norm().to_vec()),
            // The head is read once for each batch of answers: never worth 100 MB.
            output: weight(base.output(), false)?,
            spec,
        })
    }

    /// States `[tokens, hidden]` after the trunk to states after the last layer (before its norm).
    ///
    /// With `segment`, only the inputs of every `segment` layers are kept; use
    /// [`Decoder::backward`] then.
    pub fn forward(&self, hidden: &Tensor, batch: &Ragged, adapters: &Adapters) -> Result<Tensor> {
        self.run(hidden, batch, adapters, 0..self.layers.len())
    }

    /// The output norm.
    pub fn final_norm(&self, hidden: &Tensor) -> Result<Tensor> {
        rms_norm(hidden, &self.output_norm, self.spec.norm_eps)
    }

    /// The frozen output head `[vocab, hidden]`.
    pub fn output(&self) -> &FrozenWeight {
        &self.output
    }

    /// Loss and gradients with segment recomputation: the forward keeps only each segment's input,
    /// the backward runs one segment at a time again. The gradients are those of the whole graph;
    /// the memory is that of one segment.
    ///
    /// `loss` maps the last states to a scalar; gradients are returned for every adapter and for
    /// `extra` (a head's variables).
    pub fn backward(
        &self,
        hidden: &Tensor,
        batch: &Ragged,
        adapters: &Adapters,
        segment: usize,
        extra: &[&Var],
        loss: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<(f32, BTreeMap<String, Tensor>, Vec<Option<Tensor>>)> {
        let n = self.layers.len();
        let segment = if segment == 0 { n.max(1) } else { segment };
        let mut inputs = vec![hidden.detach()];
        let starts: Vec<usize> = (0..n).step_by(segment).collect();
        for s in starts.iter().rev().skip(1).rev() {
            let x = inputs[inputs.len() - 1].clone();
            inputs.push(self.run(&x, batch, &detached(adapters), *s..s + segment)?.detach());
        }
        let mut grads: BTreeMap<String, Tensor> = BTreeMap::new();
        let mut extra_grads = vec![None; extra.len()];
        let mut upstream: Option<Tensor> = None;
        let mut value = 0.0;
        for (i, s) in starts.iter().enumerate().rev() {
            let range = *s..(s + segment).min(n);
            // The first segment's input is data; the others' inputs carry a gradient down.
            let x = Var::from_tensor(&inputs[i])?;
            let input = if i == 0 { inputs[0].clone() } else { x.as_tensor().clone() };
            let y = self.run(&input, batch, adapters, range.clone())?;
            let total = match &upstream {
                None => {
                    let l = loss(&y)?;
                    value = l.to_scalar::<f32>()?;
                    l
                }
                Some(g) => (y * g)?.sum_all()?,
            };
            let store = total.backward()?;
            for (site, (a, b)) in &adapters.sites {
                for (name, var) in [(format!("{site}.lora_a"), a), (format!("{site}.lora_b"), b)] {
                    if let Some(g) = store.get(var) {
                        grads.insert(name, g.clone());
                    }
                }
            }
            if upstream.is_none() {
                extra_grads = extra.iter().map(|v| store.get(v).cloned()).collect();
            }
            upstream = if i == 0 { None } else { store.get(&x).cloned() };
            if i > 0 && upstream.is_none() {
                candle_core::bail!("no gradient came through layer {}", self.first + s);
            }
        }
        if starts.is_empty() {
            // The trunk is the whole model: only the head learns.
            let l = loss(hidden)?;
            value = l.to_scalar::<f32>()?;
            let store = l.backward()?;
            extra_grads = extra.iter().map(|v| store.get(v).cloned()).collect();
        }
        Ok((value, grads, extra_grads))
    }

    fn run(
        &self,
        hidden: &Tensor,
        batch: &Ragged,
        adapters: &Adapters,
        range: std::ops::Range<usize>,
    ) -> Result<Tensor> {
        let mut x = hidden.clone();
        let names = self.spec.linears().map(|(short, _, _)| short);
        for (i, layer) in self.layers[range.clone()].iter().enumerate() {
            let l = self.first + range.start + i;
            let site = |which: Linear, x: &Tensor| {
                let w = which as usize;
                linear(x, &layer.linears[w], adapters.at(l, names[w]))
            };
            let h = rms_norm(&x, &layer.attn_norm, self.spec.norm_eps)?;
            let (q, k, v) = (site(Linear::Q, &h)?, site(Linear::K, &h)?, site(Linear::V, &h)?);
            let o = attention(&q, &k, &v, &self.spec, batch)?;
            x = (x + site(Linear::Output, &o)?)?;
            let h = rms_norm(&x, &layer.ffn_norm, self.spec.norm_eps)?;
            let h = swiglu(&site(Linear::Gate, &h)?, &site(Linear::Up, &h)?)?;
            x = (x + site(Linear::Down, &h)?)?;
        }
        Ok(x)
    }
}

/// The same factors, outside any graph.
fn detached(a: &Adapters) -> Adapters {
    let copy = |v: &Var| Var::from_tensor(&v.as_detached_tensor());
    let sites = a.sites.iter().filter_map(|(s, (x, y))| Some((s.clone(), (copy(x).ok()?, copy(y).ok()?)))).collect();
    Adapters { scale: a.scale, sites }
}

fn frozen(
    base: &Base,
    m: MatrixRef<'_>,
    kernels: Kernels,
    threads: &Arc<Threads>,
    dense: bool,
) -> Result<FrozenWeight> {
    let start = m.data.as_ptr() as usize - base.map().as_ptr() as usize;
    let quant = QuantWeight {
        map: base.map().clone(),
        bytes: start..start + m.data.len(),
        ty: m.ty,
        rows: m.rows,
        cols: m.cols,
        kernels,
        threads: threads.clone(),
    };
    Ok(if dense { FrozenWeight::Dense(quant.dense()?) } else { FrozenWeight::Quant(quant) })
}

#[cfg(test)]
pub(crate) mod tests;
