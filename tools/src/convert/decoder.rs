//! What the decoders have in common: embedding, layers of attention and a gated feed-forward layer, norm, head.

use super::plan::{Change, Plan};
use conpet_formats::model_spec::{EMBEDDING, OUTPUT, OUTPUT_NORM};
use conpet_formats::{Code, Result};
use serde_json::{Value, json};

/// How the layers of a family differ.
pub(super) struct Layers {
    /// RoPE turns adjacent pairs: rows of queries and keys are put in that order.
    pub(super) pairs: bool,
    /// Queries, keys and values have biases.
    pub(super) qkv_bias: bool,
    /// What attention gives has a bias.
    pub(super) output_bias: bool,
    /// Width of the norms of queries and keys, if there are any.
    pub(super) qk_norm: Option<(usize, usize)>,
    /// The norms of width `hidden`: as the base calls them, and as the checkpoint does.
    pub(super) norms: &'static [(&'static str, &'static str)],
    /// Norms' weights are kept less one.
    pub(super) plus_one: bool,
    /// Queries, keys and values are one linear, and so are gate and up.
    pub(super) fused: bool,
}

/// Norms before attention and before the feed-forward layer.
pub(super) const BEFORE: &[(&str, &str)] =
    &[("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm")];

impl Default for Layers {
    fn default() -> Self {
        Self {
            pairs: false,
            qkv_bias: false,
            output_bias: false,
            qk_norm: None,
            norms: BEFORE,
            plus_one: false,
            fused: false,
        }
    }
}

/// Sizes of a decoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) ffn: usize,
    pub(super) vocab: usize,
    pub(super) context: usize,
}

impl Sizes {
    /// Reads and checks them; `head_dim` is what a family takes where the file says nothing.
    pub(super) fn read(p: &Plan<'_>, head_dim: Option<usize>) -> Result<Self> {
        let c = p.config;
        let (hidden, heads) = (c.num("hidden_size")?, c.num("num_attention_heads")?);
        let kv_heads = c.opt("num_key_value_heads")?.unwrap_or(heads);
        let odd = |key: &str, what: String| Err(c.wrong(Code::Value, key, &what));
        if heads == 0 || kv_heads == 0 || heads % kv_heads != 0 {
            return odd("num_attention_heads", format!("is {heads}, not a multiple of num_key_value_heads {kv_heads}"));
        }
        let head_dim = match c.opt("head_dim")?.or(head_dim) {
            Some(d) => d,
            None if hidden % heads == 0 => hidden / heads,
            None => return odd("hidden_size", format!("is {hidden}, not a multiple of num_attention_heads {heads}")),
        };
        if head_dim == 0 || head_dim % 2 != 0 {
            return odd("head_dim", format!("is {head_dim}, not an even number"));
        }
        Ok(Self {
            layers: c.num("num_hidden_layers")?,
            hidden,
            heads,
            kv_heads,
            head_dim,
            ffn: c.num("intermediate_size")?,
            vocab: c.num("vocab_size")?,
            context: c.num("max_position_embeddings")?,
        })
    }

    /// Writes the keys that every decoder has.
    pub(super) fn write(&self, p: &mut Plan<'_>) -> Result<()> {
        let eps = p.config.float("rms_norm_eps")?.unwrap_or(1e-6);
        p.u32("block_count", self.layers);
        p.u32("context_length", self.context);
        p.u32("embedding_length", self.hidden);
        p.u32("feed_forward_length", self.ffn);
        p.u32("attention.head_count", self.heads);
        p.u32("attention.head_count_kv", self.kv_heads);
        p.f32("attention.layer_norm_rms_epsilon", eps);
        Ok(())
    }

    /// Writes the width of a head.
    pub(super) fn write_head(&self, p: &mut Plan<'_>) {
        p.u32("attention.key_length", self.head_dim);
        p.u32("attention.value_length", self.head_dim);
    }
}

/// Refuses an activation other than these.
pub(super) fn activation(p: &Plan<'_>, known: &[&str]) -> Result<()> {
    let known: Vec<Value> = known.iter().map(|k| json!(k)).collect();
    ["hidden_act", "hidden_activation"].iter().try_for_each(|key| p.config.only(key, &known))
}

/// Refuses windows over a text, which a family has as an option and llama.cpp does not run.
pub(super) fn no_window(p: &Plan<'_>, s: &Sizes) -> Result<()> {
    let c = p.config;
    let used = c.flag("use_sliding_window", true)?;
    // Layers from this one on have windows.
    let from = c.opt("max_window_layers")?.unwrap_or(0);
    let window = c.opt("sliding_window")?.filter(|w| used && *w < s.context && from < s.layers);
    if let Some(window) = window {
        return Err(c.wrong(Code::Unsupported, "sliding_window", &format!("is {window}, which is not supported")));
    }
    layer_types(p, s, &|_| false)
}

/// Checks which layers see a window only, if the file lists them.
pub(super) fn layer_types(p: &Plan<'_>, s: &Sizes, window: &dyn Fn(usize) -> bool) -> Result<()> {
    let Some(list) = p.config.get("layer_types") else { return Ok(()) };
    let want: Vec<Value> =
        (0..s.layers).map(|l| if window(l) { json!("sliding_attention") } else { json!("full_attention") }).collect();
    if *list == Value::Array(want) {
        return Ok(());
    }
    Err(p.config.wrong(Code::Unsupported, "layer_types", "is not the order that this family has"))
}

/// Plans all tensors.
pub(super) fn tensors(p: &mut Plan<'_>, s: &Sizes, kind: &Layers) -> Result<()> {
    let (h, f) = (s.hidden, s.ffn);
    let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
    let norm = if kind.plus_one { Change::PlusOne } else { Change::None };
    let turn = |heads| if kind.pairs { Change::Pairs(heads) } else { Change::None };
    p.find_prefix(&["model.", ""], "embed_tokens.weight")?;
    p.same(EMBEDDING, "embed_tokens.weight", &[s.vocab, h])?;
    for l in 0..s.layers {
        let (to, from) = (|name: &str| format!("blk.{l}.{name}"), |name: &str| format!("layers.{l}.{name}"));
        let mut linears = vec![("attn_output", "self_attn.o_proj", h, q, kind.output_bias, Change::None)];
        if kind.fused {
            linears.push(("attn_qkv", "self_attn.qkv_proj", q + 2 * kv, h, kind.qkv_bias, Change::None));
            linears.push(("ffn_up", "mlp.gate_up_proj", 2 * f, h, false, Change::None));
        } else {
            linears.push(("attn_q", "self_attn.q_proj", q, h, kind.qkv_bias, turn(s.heads)));
            linears.push(("attn_k", "self_attn.k_proj", kv, h, kind.qkv_bias, turn(s.kv_heads)));
            linears.push(("attn_v", "self_attn.v_proj", kv, h, kind.qkv_bias, Change::None));
            linears.push(("ffn_gate", "mlp.gate_proj", f, h, false, Change::None));
            linears.push(("ffn_up", "mlp.up_proj", f, h, false, Change::None));
        }
        linears.push(("ffn_down", "mlp.down_proj", h, f, false, Change::None));
        for (name, own, out, input, bias, change) in linears {
            p.tensor(to(name) + ".weight", &from(&format!("{own}.weight")), &[out, input], change)?;
            if bias {
                p.tensor(to(name) + ".bias", &from(&format!("{own}.bias")), &[out], change)?;
            }
        }
        if let Some((q, k)) = kind.qk_norm {
            p.tensor(to("attn_q_norm.weight"), &from("self_attn.q_norm.weight"), &[q], norm)?;
            p.tensor(to("attn_k_norm.weight"), &from("self_attn.k_norm.weight"), &[k], norm)?;
        }
        for (name, own) in kind.norms {
            p.tensor(to(name) + ".weight", &from(&format!("{own}.weight")), &[h], norm)?;
        }
    }
    p.tensor(format!("{OUTPUT_NORM}.weight"), "norm.weight", &[h], norm)?;
    // Frequencies that follow from the settings.
    p.pass_over_if(|n| n.ends_with(".rotary_emb.inv_freq"));
    head(p, s)
}

/// The output head: its own tensor, or the embedding table.
fn head(p: &mut Plan<'_>, s: &Sizes) -> Result<()> {
    let own = p.weights.has("lm_head.weight");
    let tied = p.config.flag("tie_word_embeddings", !own)?;
    let table = format!("{}embed_tokens.weight", p.prefix);
    match (tied, own) {
        (true, false) => Ok(()),
        (true, true) if p.weights.same("lm_head.weight", &table) => {
            p.pass_over("lm_head.weight");
            Ok(())
        }
        (true, true) => {
            let what = "is true, but lm_head.weight differs from the embedding table";
            Err(p.config.wrong(Code::Unsupported, "tie_word_embeddings", what))
        }
        (false, _) => {
            let prefix = std::mem::take(&mut p.prefix);
            let planned = p.same(OUTPUT, "lm_head.weight", &[s.vocab, s.hidden]);
            p.prefix = prefix;
            planned
        }
    }
}
