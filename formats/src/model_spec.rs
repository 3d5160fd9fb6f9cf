//! What a decoder is, read from a GGUF's metadata and checked before anything is computed.
//!
//! One implementation serves every family; a family is a reading of metadata into [`ModelSpec`],
//! one file each under `model_spec/`, listed in [`ModelSpec::from_gguf`].

use crate::gguf::Gguf;
use crate::{Code, Error, Result};

mod gemma3;
mod llama;

/// Which pairs of a head's numbers RoPE rotates (Su et al. 2021).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// Adjacent pairs `(2i, 2i+1)`: what llama-arch GGUF files expect (their q/k rows are permuted).
    Adjacent,
    /// Halves `(i, i + d/2)`: the Hugging Face layout, kept by qwen2, gemma and others.
    Halves,
}

/// Function of the feed-forward gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// `x · σ(x)`.
    #[default]
    Silu,
    /// GELU in its tanh form (Hendrycks & Gimpel 2016).
    GeluTanh,
}

/// Layers that attend to the newest tokens only.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Local {
    /// Tokens they see, the own one included.
    pub window: usize,
    /// Their RoPE base frequency.
    pub rope_base: f32,
    /// Layers `period - 1`, `2 · period - 1` and so on are not among them.
    pub period: usize,
}

/// Where a family departs from llama, which is the default.
#[derive(Debug, Clone, PartialEq)]
pub struct Variant {
    /// Function of the feed-forward gate.
    pub activation: Activation,
    /// Multiplies the embeddings.
    pub embedding_scale: f32,
    /// Each head of queries and keys passes an RMSNorm before RoPE.
    pub qk_norm: bool,
    /// What attention and the feed-forward layer add passes an RMSNorm first.
    pub post_norm: bool,
    /// Layers that attend to the newest tokens only.
    pub local: Option<Local>,
}

impl Default for Variant {
    fn default() -> Self {
        Self { activation: Activation::Silu, embedding_scale: 1.0, qk_norm: false, post_norm: false, local: None }
    }
}

/// The numbers that define a decoder's computation.
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
    /// Numbers per head.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub ffn: usize,
    /// Rows of the embedding table.
    pub vocab: usize,
    /// Longest context the base was trained for, in tokens.
    pub context: usize,
    /// RMSNorm epsilon.
    pub norm_eps: f32,
    /// RoPE base frequency.
    pub rope_base: f32,
    /// How many of a head's numbers rotate; even, `<= head_dim`.
    pub rope_dim: usize,
    /// Which pairs rotate.
    pub rope: RopeKind,
    /// The output head is the embedding table.
    pub tied: bool,
    /// Where the family departs from llama.
    pub variant: Variant,
}

impl ModelSpec {
    /// Reads and checks the spec of a base.
    pub fn from_gguf(g: &Gguf<'_>) -> Result<Self> {
        let arch = g.required_str("general.architecture")?;
        let keys = Keys { gguf: g, arch };
        match arch {
            "llama" => llama::read(&keys),
            "gemma3" => gemma3::read(&keys),
            other => Err(Error::new(Code::Unsupported, format!("base architecture {other:?} is not supported"))
                .hint("this release runs: llama (SmolLM2, Llama 2/3, Mistral, TinyLlama), gemma3 (270M, 1B)")),
        }
    }

    /// Width of all query heads.
    pub fn q_dim(&self) -> usize {
        self.n_head * self.head_dim
    }

    /// Width of all key (or value) heads.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_head * self.head_dim
    }

    /// The local attention of a layer, if it does not see everything.
    pub fn local(&self, layer: usize) -> Option<&Local> {
        self.variant.local.as_ref().filter(|l| !(layer + 1).is_multiple_of(l.period))
    }

    /// The linear sites of a layer, in forward order: (short name, out, in). The site's full name
    /// is `blk.<layer>.<short>.weight`.
    pub fn linears(&self) -> [(&'static str, usize, usize); 7] {
        let (h, q, kv, f) = (self.hidden, self.q_dim(), self.kv_dim(), self.ffn);
        [
            ("attn_q", q, h),
            ("attn_k", kv, h),
            ("attn_v", kv, h),
            ("attn_output", h, q),
            ("ffn_gate", f, h),
            ("ffn_up", f, h),
            ("ffn_down", h, f),
        ]
    }

    /// Numbers in the base that training could touch: linears, norms, embedding, head.
    pub fn parameters(&self) -> usize {
        let v = &self.variant;
        let norms = if v.post_norm { 4 } else { 2 } * self.hidden + if v.qk_norm { 2 * self.head_dim } else { 0 };
        let layer: usize = self.linears().iter().map(|(_, o, i)| o * i).sum::<usize>() + norms;
        let tables = if self.tied { 1 } else { 2 };
        self.n_layer * layer + tables * self.vocab * self.hidden + self.hidden
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
        if self.head_dim == 0
            || self.head_dim > 1024
            || self.rope_dim == 0
            || !self.rope_dim.is_multiple_of(2)
            || self.rope_dim > self.head_dim
        {
            return bad(format!("head size {} or rope size {} is out of range", self.head_dim, self.rope_dim));
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
        if !(self.rope_base > 0.0 && self.rope_base.is_finite()) {
            return bad(format!("rope.freq_base {} is not a positive number", self.rope_base));
        }
        Ok(self)
    }
}

/// The metadata of one architecture: every key begins with its name.
struct Keys<'a> {
    gguf: &'a Gguf<'a>,
    arch: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn num(&self, key: &str) -> Result<usize> {
        Ok(self.gguf.required_u32(&self.name(key))? as usize)
    }

    fn opt(&self, key: &str) -> Result<Option<usize>> {
        Ok(self.gguf.u32(&self.name(key))?.map(|v| v as usize))
    }

    fn float(&self, key: &str) -> Result<Option<f32>> {
        self.gguf.f32(&self.name(key))
    }

    fn no_rope_scaling(&self, hint: &str) -> Result<()> {
        match self.gguf.str(&self.name("rope.scaling.type"))?.filter(|k| *k != "none") {
            Some(kind) => {
                Err(Error::new(Code::Unsupported, format!("RoPE scaling {kind:?} is not supported")).hint(hint))
            }
            None => Ok(()),
        }
    }

    /// What every family says alike, the rest as llama has it; not checked yet.
    fn common(&self) -> Result<ModelSpec> {
        let (hidden, n_head) = (self.num("embedding_length")?, self.num("attention.head_count")?);
        let in_metadata = |what: String| Error::new(Code::Value, what).in_section("metadata");
        if n_head == 0 {
            return Err(in_metadata(format!("{} is 0", self.name("attention.head_count"))));
        }
        let head_dim = match self.opt("attention.key_length")? {
            Some(d) => d,
            None if hidden % n_head == 0 => hidden / n_head,
            None => {
                return Err(in_metadata(format!("embedding_length {hidden} is not a multiple of head_count {n_head}")));
            }
        };
        let table = self.gguf.tensor("token_embd.weight");
        let table = table.ok_or_else(|| Error::new(Code::Missing, "no tensor token_embd.weight"))?;
        Ok(ModelSpec {
            arch: self.arch.to_owned(),
            name: self.gguf.str("general.name")?.unwrap_or(self.arch).to_owned(),
            n_layer: self.num("block_count")?,
            hidden,
            n_head,
            n_kv_head: self.opt("attention.head_count_kv")?.unwrap_or(n_head),
            head_dim,
            ffn: self.num("feed_forward_length")?,
            vocab: usize::try_from(table.rows()).unwrap_or(usize::MAX),
            context: self.num("context_length")?,
            norm_eps: self.gguf.required_f32(&self.name("attention.layer_norm_rms_epsilon"))?,
            rope_base: self.float("rope.freq_base")?.unwrap_or(10_000.0),
            rope_dim: head_dim,
            rope: RopeKind::Adjacent,
            tied: self.gguf.tensor("output.weight").is_none(),
            variant: Variant::default(),
        })
    }
}
