//! What a layer is made of: its linears, norms and attention, and what their tensors are called.

/// The seven linears of a layer, in forward order. A layer without a gate has six.
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
}

/// Linears whose rows lie one after another in one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fused {
    /// As GGUF calls the tensor, e.g. `attn_qkv`.
    pub name: &'static str,
    /// Its linears, in the order of their rows.
    pub linears: &'static [Linear],
}

impl Fused {
    /// Queries, keys and values.
    pub const QKV: Self = Self { name: "attn_qkv", linears: &[Linear::Q, Linear::K, Linear::V] };
    /// Gate and up.
    pub const GATE_UP: Self = Self { name: Linear::Up.name(), linears: &[Linear::Gate, Linear::Up] };
}

/// How norms normalise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// RMSNorm (Zhang & Sennrich 2019): a weight, no bias.
    Rms,
    /// LayerNorm (Ba et al. 2016): a weight and a bias.
    Layer,
}

/// The norms that a layer can have, in forward order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Of the residual stream, before attention.
    Attn,
    /// Of queries, before RoPE: each head by itself, or all together ([`ModelSpec::whole_qk_norm`](super::ModelSpec)).
    Q,
    /// Of keys, likewise.
    K,
    /// Of what attention gives, before it is added to the residual stream.
    PostAttn,
    /// Of the residual stream after attention; its result is the residual stream from there on.
    AttnSum,
    /// Of the residual stream, before the feed-forward layer.
    Ffn,
    /// Of what the feed-forward layer gives, before it is added to the residual stream.
    PostFfn,
    /// Of the residual stream after the feed-forward layer; its result leaves the layer.
    FfnSum,
}

impl Norm {
    /// All of them, in forward order.
    pub const ALL: [Self; 8] =
        [Self::Attn, Self::Q, Self::K, Self::PostAttn, Self::AttnSum, Self::Ffn, Self::PostFfn, Self::FfnSum];

    /// As GGUF calls it, e.g. `attn_norm`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Attn => "attn_norm",
            Self::Q => "attn_q_norm",
            Self::K => "attn_k_norm",
            Self::PostAttn => "post_attention_norm",
            Self::AttnSum => "attn_output_norm",
            Self::Ffn => "ffn_norm",
            Self::PostFfn => "post_ffw_norm",
            Self::FfnSum => "layer_output_norm",
        }
    }
}

/// The tensor of a layer that holds a matrix, or a norm's weight.
pub(super) fn weight(layer: usize, name: &str) -> String {
    format!("blk.{layer}.{name}.weight")
}

/// The tensor of a layer that holds a bias.
pub(super) fn bias(layer: usize, name: &str) -> String {
    format!("blk.{layer}.{name}.bias")
}

/// Function in the middle of a feed-forward layer, of the gate or, without one, of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · σ(x)`.
    Silu,
    /// GELU in its tanh form (Hendrycks & Gimpel 2016).
    GeluTanh,
    /// GELU itself, `x · Φ(x)`.
    Gelu,
}

/// The attention of a layer: over all tokens that its base lets it see, or the newest of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attention {
    /// How many of the newest tokens a token sees, itself included; all if `None`.
    pub window: Option<usize>,
    /// Index of its rotary embedding in [`ModelSpec::ropes`](super::ModelSpec::ropes); `None` if it has none.
    pub rope: Option<usize>,
}
