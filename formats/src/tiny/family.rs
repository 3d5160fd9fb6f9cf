//! The families of tiny bases: what each has, and the keys that say so.

use super::{Stretch, TinyConfig};
use crate::gguf::Writer;
use crate::model_spec::{Fused, Linear, Norm};

/// Which family the tiny base belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TinyArch {
    Llama,
    Qwen2,
    Qwen3,
    Gemma2,
    Gemma3,
    Phi3,
    Granite,
    SmolLm3,
    Olmo2,
    Bert,
    NomicBert,
}

/// What bases of a family have.
pub(super) struct Family {
    arch: &'static str,
    pub(super) decoder: bool,
    pub(super) norms: &'static [Norm],
    pub(super) layer_norm: bool,
    pub(super) whole_qk_norm: bool,
    pub(super) biases: &'static [Linear],
    pub(super) fused: &'static [Fused],
    pub(super) gated: bool,
    pub(super) positions: bool,
    pub(super) grows_embeddings: bool,
    /// The tensors of a rotary embedding's factors.
    pub(super) factors: &'static [&'static str],
    rope_base: f32,
}

/// As SmolLM2; the others are told by what differs.
const LLAMA: Family = Family {
    arch: "llama",
    decoder: true,
    norms: &[Norm::Attn, Norm::Ffn],
    layer_norm: false,
    whole_qk_norm: false,
    biases: &[],
    fused: &[],
    gated: true,
    positions: false,
    grows_embeddings: false,
    factors: &["rope_freqs.weight"],
    rope_base: 10_000.0,
};

const BERT: Family = Family {
    arch: "bert",
    decoder: false,
    norms: &[Norm::AttnSum, Norm::FfnSum],
    layer_norm: true,
    biases: &Linear::ALL,
    gated: false,
    positions: true,
    factors: &[],
    ..LLAMA
};

impl TinyArch {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Llama,
        Self::Qwen2,
        Self::Qwen3,
        Self::Gemma2,
        Self::Gemma3,
        Self::Phi3,
        Self::Granite,
        Self::SmolLm3,
        Self::Olmo2,
        Self::Bert,
        Self::NomicBert,
    ];

    /// `general.architecture`.
    pub fn name(self) -> &'static str {
        self.family().arch
    }

    /// Whether it is a decoder; an encoder otherwise.
    pub fn is_decoder(self) -> bool {
        self.family().decoder
    }

    pub(super) fn family(self) -> Family {
        let arch = |arch| Family { arch, ..LLAMA };
        match self {
            Self::Llama => LLAMA,
            Self::Qwen2 => Family { biases: &[Linear::Q, Linear::K, Linear::V], ..arch("qwen2") },
            Self::Qwen3 => Family { norms: &[Norm::Attn, Norm::Q, Norm::K, Norm::Ffn], ..arch("qwen3") },
            Self::Gemma2 => Family {
                norms: &[Norm::Attn, Norm::PostAttn, Norm::Ffn, Norm::PostFfn],
                grows_embeddings: true,
                ..arch("gemma2")
            },
            Self::Gemma3 => Family {
                norms: &[Norm::Attn, Norm::Q, Norm::K, Norm::PostAttn, Norm::Ffn, Norm::PostFfn],
                grows_embeddings: true,
                rope_base: 1_000_000.0,
                ..arch("gemma3")
            },
            Self::Phi3 => Family {
                fused: &[Fused::QKV, Fused::GATE_UP],
                factors: &["rope_factors_short.weight", "rope_factors_long.weight"],
                ..arch("phi3")
            },
            Self::Granite => arch("granite"),
            Self::SmolLm3 => arch("smollm3"),
            Self::Olmo2 => Family {
                norms: &[Norm::Q, Norm::K, Norm::PostAttn, Norm::PostFfn],
                whole_qk_norm: true,
                ..arch("olmo2")
            },
            Self::Bert => BERT,
            Self::NomicBert => {
                Family { arch: "nomic-bert", biases: &[], fused: &[Fused::QKV], gated: true, positions: false, ..BERT }
            }
        }
    }
}

impl Family {
    /// The keys of the architecture.
    pub(super) fn write_keys(&self, w: &mut Writer, c: &TinyConfig, vocab: usize) {
        let key = |name: &str| format!("{}.{name}", self.arch);
        let head_dim = (c.hidden / c.heads) as u32;
        w.str("general.architecture", self.arch)
            .str("general.name", "conpet tiny")
            .u32(&key("block_count"), c.layers as u32)
            .u32(&key("context_length"), c.context as u32)
            .u32(&key("embedding_length"), c.hidden as u32)
            .u32(&key("feed_forward_length"), c.ffn as u32)
            .u32(&key("attention.head_count"), c.heads as u32)
            .u32(&key("attention.head_count_kv"), c.kv_heads as u32);
        if !self.positions {
            w.f32(&key("rope.freq_base"), self.rope_base);
        }
        let epsilon = if self.layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
        w.f32(&key(epsilon), 1e-5).u32(&key("vocab_size"), vocab as u32);
        if !self.positions {
            w.u32(&key("rope.dimension_count"), head_dim);
        }
        match c.arch {
            TinyArch::Gemma3 => {
                w.u32(&key("attention.key_length"), head_dim)
                    .u32(&key("attention.value_length"), head_dim)
                    .u32(&key("attention.sliding_window"), c.window as u32);
            }
            TinyArch::Gemma2 => {
                w.u32(&key("attention.sliding_window"), c.window as u32)
                    .f32(&key("attn_logit_softcapping"), 5.0)
                    .f32(&key("final_logit_softcapping"), 3.0);
            }
            TinyArch::Phi3 => {
                w.u32(&key("attention.sliding_window"), c.window as u32)
                    .u32(&key("rope.scaling.original_context_length"), c.context as u32 / 2);
            }
            TinyArch::Granite => {
                w.f32(&key("embedding_scale"), 1.5)
                    .f32(&key("residual_scale"), 0.4)
                    .f32(&key("attention.scale"), 0.3)
                    .f32(&key("logit_scale"), 2.0);
            }
            TinyArch::Bert | TinyArch::NomicBert => {
                w.bool(&key("attention.causal"), false).u32(&key("pooling_type"), 1);
            }
            _ => {}
        }
        match c.stretch {
            Stretch::None | Stretch::Factors => {}
            Stretch::Linear => {
                w.str(&key("rope.scaling.type"), "linear").f32(&key("rope.scaling.factor"), 4.0);
            }
            Stretch::Yarn => {
                w.str(&key("rope.scaling.type"), "yarn")
                    .f32(&key("rope.scaling.factor"), 4.0)
                    .u32(&key("rope.scaling.original_context_length"), c.context as u32 / 4);
            }
        }
    }
}
