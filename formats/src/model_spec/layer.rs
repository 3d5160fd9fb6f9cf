//! What a decoder layer is made of: its linears, norms and attention, and what their tensors are called.

/// The seven linears of a layer, in forward order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Linear {
    Q,
    K,
    V,
    Output,
    Gate,
    Up,
    Down,
}

impl Linear {
    /// All seven, in forward order.
    pub const ALL: [Self; 7] = [Self::Q, Self::K, Self::V, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// As GGUF calls it, e.g. `attn_q`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Q => "attn_q",
            Self::K => "attn_k",
            Self::V => "attn_v",
            Self::Output => "attn_output",
            Self::Gate => "ffn_gate",
            Self::Up => "ffn_up",
            Self::Down => "ffn_down",
        }
    }

    /// The tensor that holds its matrix `[out, in]`.
    pub fn weight(self, layer: usize) -> String {
        format!("blk.{layer}.{}.weight", self.name())
    }

    /// The tensor that holds its bias `[out]`.
    pub fn bias(self, layer: usize) -> String {
        format!("blk.{layer}.{}.bias", self.name())
    }
}

/// The norms that a layer can have, in forward order. Each is an RMSNorm with a weight of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Of the residual stream, before attention.
    Attn,
    /// Of each query head, before RoPE.
    Q,
    /// Of each key head, before RoPE.
    K,
    /// Of what attention gives, before it is added to the residual stream.
    PostAttn,
    /// Of the residual stream, before the feed-forward layer.
    Ffn,
    /// Of what the feed-forward layer gives, before it is added to the residual stream.
    PostFfn,
}

impl Norm {
    /// As GGUF calls it, e.g. `attn_norm`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attn => "attn_norm",
            Self::Q => "attn_q_norm",
            Self::K => "attn_k_norm",
            Self::PostAttn => "post_attention_norm",
            Self::Ffn => "ffn_norm",
            Self::PostFfn => "post_ffw_norm",
        }
    }

    /// The tensor that holds its weight.
    pub fn weight(self, layer: usize) -> String {
        format!("blk.{layer}.{}.weight", self.name())
    }
}

/// Function of the feed-forward gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// GELU in its tanh form (Hendrycks & Gimpel 2016).
    GeluTanh,
}

/// Which pairs of a head's elements RoPE rotates (Su et al. 2021).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeKind {
    /// Adjacent pairs `(2i, 2i+1)`: what llama-arch GGUF files expect (their q/k rows are permuted).
    Adjacent,
    /// Halves `(i, i + d/2)`: the Hugging Face layout, kept by qwen2, gemma and others.
    Halves,
}

/// A rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Which pairs rotate.
    pub kind: RopeKind,
    /// Base frequency.
    pub base: f32,
    /// How many of a head's elements rotate; even, `<= head_dim`.
    pub dim: usize,
}

/// The attention of a layer: causal, over all earlier tokens or the newest of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// How many of the newest tokens a token sees, itself included; all if `None`.
    pub window: Option<usize>,
    /// Index of its rotary embedding in [`ModelSpec::ropes`](super::ModelSpec::ropes).
    pub rope: usize,
}
