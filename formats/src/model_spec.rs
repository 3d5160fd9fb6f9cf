//! What a base computes, read from a GGUF's metadata and checked before anything is computed.
//!
//! One implementation serves every family, in the runtime and in the trainer: both read what a layer
//! is from [`ModelSpec`]. A family is one file under `model_spec/` that fills it in, and one line in
//! `FAMILIES`. Every key of the family and every tensor of the file is read, known to change nothing
//! (`model_spec/keys.rs`), or refused by name.

use crate::gguf::Gguf;
use crate::{Code, Error, Result};
use keys::Keys;

mod bert;
mod check;
mod gemma2;
mod gemma3;
mod granite;
mod keys;
mod layer;
mod llama;
mod nomic_bert;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;
mod smollm3;

pub use layer::{Activation, Attention, Fused, Linear, Norm, NormKind};
pub use rope::{Rope, RopeKind};

/// A reading of metadata into a spec.
struct Family {
    /// `general.architecture`.
    arch: &'static str,
    /// Models of it that are known to run, for people.
    models: &'static str,
    /// What the names of Hugging Face's classes for it begin with.
    classes: &'static [&'static str],
    read: fn(&Keys<'_>) -> Result<ModelSpec>,
}

/// The families there are.
const FAMILIES: &[Family] = &[
    llama::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    phi3::FAMILY,
    granite::FAMILY,
    smollm3::FAMILY,
    olmo2::FAMILY,
    bert::FAMILY,
    nomic_bert::FAMILY,
];

/// The tensor of the embedding table, `[vocab, hidden]`.
pub const EMBEDDING: &str = "token_embd.weight";
/// The tensor of learned positions, `[context, hidden]`.
pub const POSITIONS: &str = "position_embd.weight";
/// The tensor of token types, `[types, hidden]`; every token is of the first.
pub const TOKEN_TYPES: &str = "token_types.weight";
/// The tensors of the norm of embeddings and of the last norm, `[hidden]`, without `.weight` or `.bias`.
pub const EMBEDDING_NORM: &str = "token_embd_norm";
/// See [`EMBEDDING_NORM`].
pub const OUTPUT_NORM: &str = "output_norm";
/// The tensor of the output head, `[vocab, hidden]`, unless the embedding table is the head.
pub const OUTPUT: &str = "output.weight";

/// What a base computes.
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
    /// A token sees only what came before it, and its last state predicts the next token: a decoder. An
    /// encoder's tokens see the whole text, and it has no output head.
    pub causal: bool,
    /// How every norm normalises.
    pub norm_kind: NormKind,
    /// Epsilon of every norm.
    pub norm_eps: f32,
    /// What is added to the embeddings, and whether their sum is normalised.
    pub embedding: Embedding,
    /// Multiplies what attention and the feed-forward layer give before it is added to the residual stream.
    pub residual_scale: f32,
    /// Multiplies the product of a query and a key; `1 / sqrt(head_dim)` as a rule.
    pub attention_scale: f32,
    /// Bends those scaled products: `c · tanh(x / c)`.
    pub attention_cap: Option<f32>,
    /// Function of the feed-forward layer.
    pub activation: Activation,
    /// The feed-forward layer has a gate, `f(gate) · up`; without, `f(up)`.
    pub gated: bool,
    /// The norms of each layer, in forward order.
    pub norms: &'static [Norm],
    /// The norms of queries and keys take all heads of a token together, not each by itself.
    pub whole_qk_norm: bool,
    /// The linears that have a bias.
    pub biases: Vec<Linear>,
    /// The linears that share a tensor.
    pub fused: Vec<Fused>,
    /// The rotary embeddings of the layers, each once.
    pub ropes: Vec<Rope>,
    /// The same for contexts longer than `context`, up to so many tokens (LongRoPE).
    pub longer: Option<(usize, Vec<Rope>)>,
    /// The attention of the layers in turn, again and again: layer `l` has entry `l % len`. Never empty.
    pub attention: Vec<Attention>,
    /// What follows the last layer.
    pub output: Output,
    /// How the base was trained to pool its last states into one, if the file says so.
    pub pooling: Option<Pooling>,
    /// Tensors that were read into this spec.
    pub tables: Vec<&'static str>,
}

/// What enters the first layer: embeddings, and what is added to them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Embedding {
    /// Multiplies the embeddings.
    pub scale: f32,
    /// Each position has a learned row.
    pub positions: bool,
    /// Rows of the table of token types, of which the first is added; 0 if there is none.
    pub types: usize,
    /// The sum is normalised.
    pub norm: bool,
}

/// What follows the last layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Output {
    /// A norm.
    pub norm: bool,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Multiplies the logits.
    pub scale: f32,
    /// Bends the scaled logits: `c · tanh(x / c)`.
    pub cap: Option<f32>,
}

/// How an encoder's last states become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// Their mean.
    Mean,
    /// The first token's.
    First,
    /// The last token's.
    Last,
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
            let known = format!("this release runs: {}", known.join(", "));
            let mixture = arch.contains("moe") || g.u32(&format!("{arch}.expert_count"))?.is_some_and(|n| n > 0);
            let what = if mixture { "a mixture of experts, which is" } else { "" };
            let comma = if mixture { ", " } else { " is" };
            return Err(Error::new(
                Code::Unsupported,
                format!("base architecture {arch:?}{comma}{what} not supported"),
            )
            .hint(known));
        };
        let keys = Keys::new(g, arch);
        let spec = (family.read)(&keys)?.check()?;
        keys.all_read()?;
        Ok(spec)
    }

    /// Whether a class of Hugging Face, `LlamaForCausalLM` for instance, is of this family.
    pub fn is_class(&self, name: &str) -> bool {
        // A `Qwen3MoeForCausalLM` is no Qwen3.
        let ends = |rest: &str| rest.is_empty() || ["For", "Model", "Text"].iter().any(|next| rest.starts_with(next));
        let mut classes = FAMILIES.iter().filter(|f| f.arch == self.arch).flat_map(|f| f.classes);
        classes.any(|c| name.strip_prefix(c).is_some_and(ends))
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
        let layer = move |l| {
            let linears = self.linears().map(move |x| self.weight_name(l, x).0);
            let biases = self.biases.iter().map(move |x| self.bias_name(l, *x).0);
            linears
                .chain(biases)
                .chain(self.norms.iter().flat_map(move |x| self.norm_names(&format!("blk.{l}.{}", x.name()))))
        };
        let embedding = [
            Some(EMBEDDING),
            self.embedding.positions.then_some(POSITIONS),
            (self.embedding.types > 0).then_some(TOKEN_TYPES),
            (self.causal && !self.output.tied).then_some(OUTPUT),
        ];
        let norms = [(self.embedding.norm, EMBEDDING_NORM), (self.output.norm, OUTPUT_NORM)];
        let norms = norms.into_iter().filter(|(has, _)| *has).flat_map(|(_, name)| self.norm_names(name));
        let ends = embedding.into_iter().flatten().chain(self.tables.iter().copied()).map(String::from);
        ends.chain(norms).chain((0..self.n_layer).flat_map(layer))
    }

    /// The tensors of a norm: its weight, and its bias if it has one.
    pub fn norm_names(&self, stem: &str) -> impl Iterator<Item = String> + use<> {
        let bias = (self.norm_kind == NormKind::Layer).then(|| format!("{stem}.bias"));
        std::iter::once(format!("{stem}.weight")).chain(bias)
    }

    /// The tensor that holds a linear's matrix, and the linear's first row in it.
    pub fn weight_name(&self, layer: usize, which: Linear) -> (String, usize) {
        let (name, row) = self.place_of(which);
        (layer::weight(layer, name), row)
    }

    /// The tensor that holds a linear's bias, and the linear's first value in it.
    pub fn bias_name(&self, layer: usize, which: Linear) -> (String, usize) {
        let (name, row) = self.place_of(which);
        (layer::bias(layer, name), row)
    }

    fn place_of(&self, which: Linear) -> (&'static str, usize) {
        let Some(fused) = self.fused.iter().find(|f| f.linears.contains(&which)) else { return (which.name(), 0) };
        let before = fused.linears.iter().take_while(|l| **l != which);
        (fused.name, before.map(|l| self.shape(*l).0).sum())
    }

    /// All rows of the tensor that a linear's matrix lies in.
    pub fn rows_of_tensor(&self, which: Linear) -> usize {
        let fused = self.fused.iter().find(|f| f.linears.contains(&which));
        fused.map_or(self.shape(which).0, |f| f.linears.iter().map(|l| self.shape(*l).0).sum())
    }

    /// Whether layers have this linear.
    pub fn has_linear(&self, which: Linear) -> bool {
        self.gated || which != Linear::Gate
    }

    /// Whether layers have this norm.
    pub fn has(&self, norm: Norm) -> bool {
        self.norms.contains(&norm)
    }

    /// Elements of a norm's weight.
    pub fn norm_width(&self, norm: Norm) -> usize {
        match norm {
            Norm::Q if self.whole_qk_norm => self.q_dim(),
            Norm::K if self.whole_qk_norm => self.kv_dim(),
            Norm::Q | Norm::K => self.head_dim,
            _ => self.hidden,
        }
    }

    /// The attention of a layer.
    pub fn attention(&self, layer: usize) -> Attention {
        self.attention[layer % self.attention.len()]
    }

    /// The rotary embedding of a layer, if it has one.
    pub fn rope(&self, layer: usize) -> Option<&Rope> {
        Some(&self.ropes[self.attention(layer).rope?])
    }

    /// The window of the layers that do not see everything, if there are any.
    pub fn window(&self) -> Option<usize> {
        self.attention.iter().find_map(|a| a.window)
    }

    /// The same base for contexts of so many tokens: what is longer than its own needs other rotary embeddings
    /// in some families.
    #[must_use]
    pub fn for_context(mut self, tokens: usize) -> Self {
        if let Some((context, ropes)) = self.longer.take_if(|(most, _)| (self.context + 1..=*most).contains(&tokens)) {
            (self.context, self.ropes) = (context, ropes);
        }
        self
    }

    /// Width of all query heads.
    pub fn q_dim(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_head * self.head_dim
    }

    /// `(out, in)` of a linear.
    pub fn shape(&self, which: Linear) -> (usize, usize) {
        let (h, q, kv, f) = (self.hidden, self.q_dim(), self.kv_dim(), self.ffn);
        match which {
            Linear::Q => (q, h),
            Linear::K | Linear::V => (kv, h),
            Linear::Output => (h, q),
            Linear::Gate | Linear::Up => (f, h),
            Linear::Down => (h, f),
        }
    }

    /// The linears of a layer, in forward order.
    pub fn linears(&self) -> impl Iterator<Item = Linear> {
        Linear::ALL.into_iter().filter(|x| self.has_linear(*x))
    }

    /// Parameters of the base that training could touch: linears, norms, embedding, head.
    pub fn parameters(&self) -> usize {
        let weights: usize = self.linears().map(|l| self.shape(l).0 * self.shape(l).1).sum();
        let biases: usize = self.biases.iter().map(|l| self.shape(*l).0).sum();
        let per_norm = if self.norm_kind == NormKind::Layer { 2 } else { 1 };
        let norms: usize = self.norms.iter().map(|n| per_norm * self.norm_width(*n)).sum();
        let tables = if self.causal && !self.output.tied { 2 } else { 1 };
        let positions = if self.embedding.positions { self.context } else { 0 };
        let rows = tables * self.vocab + positions + self.embedding.types;
        let ends = usize::from(self.embedding.norm) + usize::from(self.output.norm);
        self.n_layer * (weights + biases + norms) + (rows + per_norm * ends) * self.hidden
    }
}

#[cfg(test)]
mod tests;
