//! What a decoder is, read from a GGUF's metadata and checked before anything is computed.
//!
//! One implementation serves every family, in the runtime and in the trainer: both read what a layer
//! is from [`ModelSpec`]. A family is one file under `model_spec/` that fills it in, and one line in
//! `FAMILIES`. Every key of the family and every tensor of the file is read, known to change nothing
//! (`model_spec/keys.rs`), or refused by name.

use crate::gguf::Gguf;
use crate::{Code, Error, Result};
use keys::Keys;

mod gemma3;
mod keys;
mod layer;
mod llama;

pub use layer::{Activation, Attention, Linear, Norm, Rope, RopeKind};

/// A reading of metadata into a spec.
struct Family {
    /// `general.architecture`.
    arch: &'static str,
    /// Models of it that are known to run, for people.
    models: &'static str,
    read: fn(&Keys<'_>) -> Result<ModelSpec>,
}

/// The families there are.
const FAMILIES: &[Family] = &[llama::FAMILY, gemma3::FAMILY];

/// The tensor of the embedding table, `[vocab, hidden]`.
pub const EMBEDDING: &str = "token_embd.weight";
/// The tensor of the last norm, `[hidden]`.
pub const OUTPUT_NORM: &str = "output_norm.weight";
/// The tensor of the output head, `[vocab, hidden]`, unless the embedding table is the head.
pub const OUTPUT: &str = "output.weight";

/// What a decoder computes.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// `general.architecture`.
    pub arch: String,
    /// `general.name`, or the architecture.
    pub name: String,
    /// Number of layers.
    pub n_layer: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Query heads.
    pub n_head: usize,
    /// Key/value heads; divides `n_head`.
    pub n_kv_head: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Longest context the base was trained for, in tokens.
    pub context: usize,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Multiplies the embeddings.
    pub embedding_scale: f32,
    /// Multiplies the product of a query and a key; `1 / sqrt(head_dim)` as a rule.
    pub attention_scale: f32,
    /// Function of the feed-forward gate.
    pub activation: Activation,
    /// The norms of each layer, in forward order; [`Norm::Attn`] and [`Norm::Ffn`] are always there.
    pub norms: &'static [Norm],
    /// The linears that have a bias.
    pub biases: Vec<Linear>,
    /// The rotary embeddings of the layers, each once; never empty.
    pub ropes: Vec<Rope>,
    /// The attention of the layers in turn, again and again: layer `l` has entry `l % len`. Never empty.
    pub attention: Vec<Attention>,
}

impl ModelSpec {
    /// Reads and checks the spec of a base.
    ///
    /// # Errors
    /// If the architecture, or a key or value of it, is not one that this release runs.
    pub fn from_gguf(g: &Gguf<'_>) -> Result<Self> {
        let arch = g.required_str("general.architecture")?;
        let Some(family) = FAMILIES.iter().find(|f| f.arch == arch) else {
            let known: Vec<String> = FAMILIES.iter().map(|f| format!("{} ({})", f.arch, f.models)).collect();
            return Err(Error::new(Code::Unsupported, format!("base architecture {arch:?} is not supported"))
                .hint(format!("this release runs: {}", known.join(", "))));
        };
        let keys = Keys::new(g, arch);
        let spec = (family.read)(&keys)?.check()?;
        keys.all_read()?;
        Ok(spec)
    }

    /// Refuses a file with a tensor that a base of this spec does not have.
    ///
    /// # Errors
    /// Names the first such tensor.
    pub fn check_tensors(&self, g: &Gguf<'_>) -> Result<()> {
        let known: std::collections::BTreeSet<String> = self.tensor_names().collect();
        match g.tensors().iter().find(|t| !known.contains(t.name)) {
            None => Ok(()),
            Some(t) => Err(Error::new(Code::Unsupported, format!("a {} base has no such tensor", self.arch))
                .in_section(format!("tensor {}", t.name))
                .hint("it may change what the model computes, so the base is not run; take one without this tensor")),
        }
    }

    /// The names of all tensors.
    fn tensor_names(&self) -> impl Iterator<Item = String> {
        let layer = |l| {
            let weights = Linear::ALL.into_iter().map(move |x| x.weight(l));
            let biases = self.biases.iter().map(move |x| x.bias(l));
            weights.chain(biases).chain(self.norms.iter().map(move |x| x.weight(l)))
        };
        let ends = [EMBEDDING, OUTPUT_NORM].into_iter().chain((!self.tied).then_some(OUTPUT));
        ends.map(String::from).chain((0..self.n_layer).flat_map(layer))
    }

    /// Whether layers have this norm.
    pub fn has(&self, norm: Norm) -> bool {
        self.norms.contains(&norm)
    }

    /// Elements of a norm's weight.
    pub fn norm_width(&self, norm: Norm) -> usize {
        if matches!(norm, Norm::Q | Norm::K) { self.head_dim } else { self.hidden }
    }

    /// The attention of a layer.
    pub fn attention(&self, layer: usize) -> Attention {
        self.attention[layer % self.attention.len()]
    }

    /// The rotary embedding of a layer.
    pub fn rope(&self, layer: usize) -> Rope {
        self.ropes[self.attention(layer).rope]
    }

    /// The window of the layers that do not see everything, if there are any.
    pub fn window(&self) -> Option<usize> {
        self.attention.iter().find_map(|a| a.window)
    }

    /// Width of all query heads.
    pub fn q_dim(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_head * self.head_dim
    }

    /// The linear sites of a layer, in forward order: (short name, out, in). The site's full name
    /// is `blk.<layer>.<short>.weight`.
    pub fn linears(&self) -> [(&'static str, usize, usize); 7] {
        let (h, q, kv, f) = (self.hidden, self.q_dim(), self.kv_dim(), self.ffn);
        let shapes = [(q, h), (kv, h), (kv, h), (h, q), (f, h), (f, h), (h, f)];
        std::array::from_fn(|i| (Linear::ALL[i].name(), shapes[i].0, shapes[i].1))
    }

    /// Parameters of the base that training could touch: linears, norms, embedding, head.
    pub fn parameters(&self) -> usize {
        let linears = self.linears();
        let weights: usize = linears.iter().map(|(_, o, i)| o * i).sum();
        let biases: usize = self.biases.iter().map(|l| linears[*l as usize].1).sum();
        let norms: usize = self.norms.iter().map(|n| self.norm_width(*n)).sum();
        let tables = if self.tied { 1 } else { 2 };
        self.n_layer * (weights + biases + norms) + tables * self.vocab * self.hidden + self.hidden
    }

    /// Semantic bounds (reliability: a hyper-parameter from a file is hostile until checked).
    fn check(self) -> Result<Self> {
        let bad = |what: String| Err(Error::new(Code::Value, what).in_section("metadata"));
        if self.n_layer == 0 || self.n_layer > 512 {
            return bad(format!("block_count {} is not in 1..=512", self.n_layer));
        }
        if self.n_head == 0 || self.n_head > 1024 || self.hidden == 0 || self.hidden > 65_536 {
            return bad(format!("head_count {} or embedding_length {} is out of range", self.n_head, self.hidden));
        }
        if self.n_kv_head == 0 || !self.n_head.is_multiple_of(self.n_kv_head) {
            return bad(format!("head_count {} is not a multiple of head_count_kv {}", self.n_head, self.n_kv_head));
        }
        let unfit = |r: &&Rope| r.dim == 0 || !r.dim.is_multiple_of(2) || r.dim > self.head_dim;
        let rope = self.ropes.iter().find(unfit);
        if self.head_dim == 0 || self.head_dim > 1024 || rope.is_some() {
            let rope = rope.unwrap_or(&self.ropes[0]).dim;
            return bad(format!("head size {} or rope size {rope} is out of range", self.head_dim));
        }
        if self.ffn == 0 || self.ffn > 1 << 20 || self.vocab == 0 || self.vocab > 1 << 22 {
            return bad(format!("feed_forward_length {} or vocabulary {} is out of range", self.ffn, self.vocab));
        }
        if self.context == 0 || self.context > 1 << 24 {
            return bad(format!("context_length {} is out of range", self.context));
        }
        if !(self.norm_eps > 0.0 && self.norm_eps < 1.0) {
            return bad(format!("layer_norm_rms_epsilon {} is not in (0, 1)", self.norm_eps));
        }
        if let Some(r) = self.ropes.iter().find(|r| !(r.base > 0.0 && r.base.is_finite())) {
            return bad(format!("rope.freq_base {} is not a positive number", r.base));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
