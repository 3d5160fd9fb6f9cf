//! A tiny random base, made here: for `--offline`, and for tests that must not need a download.
//!
//! Same bytes for the same configuration, everywhere: weights come from ChaCha8, the tokenizer
//! holds all 256 bytes plus merges learned from a fixed list of words.

mod family;
mod split;
mod stage;

pub use family::TinyArch;
pub use split::split;
pub use stage::{no_base, with_task};

use crate::Result;
use crate::gguf::Writer;
use crate::model_spec::{Fused, Linear, Norm};
use crate::quant::{self, QuantType};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How a tiny decoder's rotary embedding is stretched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stretch {
    /// Not at all.
    None,
    /// All pairs alike.
    Linear,
    /// By YaRN.
    Yarn,
    /// By factors in tensors: as Llama 3 does, or Phi-3 (LongRoPE).
    Factors,
}

/// What the tiny base is like.
#[derive(Debug, Clone)]
pub struct TinyConfig {
    /// Its family.
    pub arch: TinyArch,
    /// Seed of the weights.
    pub seed: u64,
    /// Layers.
    pub layers: usize,
    /// Width; a multiple of the type's block length.
    pub hidden: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Feed-forward width.
    pub ffn: usize,
    /// Type of the linears.
    pub linear: QuantType,
    /// Type of the embedding.
    pub embedding: QuantType,
    /// Trained context, in tokens.
    pub context: usize,
    /// Whether a llama's linears of attention have biases.
    pub biases: bool,
    /// Tokens that layers with a window see; short texts outgrow the default.
    pub window: usize,
    /// How the rotary embedding is stretched.
    pub stretch: Stretch,
}

impl Default for TinyConfig {
    fn default() -> Self {
        Self {
            arch: TinyArch::Llama,
            seed: 1,
            layers: 4,
            hidden: 64,
            heads: 4,
            kv_heads: 2,
            ffn: 128,
            linear: QuantType::Q8_0,
            embedding: QuantType::Q8_0,
            context: 512,
            biases: false,
            window: 24,
            stretch: Stretch::None,
        }
    }
}

const WORDS: &str = "the and to of in is it you that for on are with as be at have this from or one had by word but not \
what all were we when your can said there use an each which she do how their if will up other about out many then them \
these so some her would make like him into time has look two more write go see number no way could people my than first \
water been call who oil its now find long down day did get come made may part light turn list show open close file";

/// Numbers a deterministic generator draws, uniform with standard deviation `std`.
fn draw(rng: &mut ChaCha8Rng, n: usize, std: f32) -> Vec<f32> {
    let half = std * 3f32.sqrt();
    (0..n).map(|_| (rng.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0) * half).collect()
}

/// The bytes of a GGUF.
///
/// # Errors
/// If the widths do not fit the quant types.
pub fn base(c: &TinyConfig) -> Result<Vec<u8>> {
    let (tokens, merges, kinds) = vocabulary();
    let vocab = tokens.len();
    let family = c.arch.family();
    let mut w = Writer::new();
    family.write_keys(&mut w, c, vocab);
    w.str("tokenizer.ggml.model", "gpt2")
        .str("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &tokens)
        .i32s("tokenizer.ggml.token_type", &kinds)
        .strings("tokenizer.ggml.merges", &merges)
        .u32("tokenizer.ggml.bos_token_id", 1)
        .u32("tokenizer.ggml.eos_token_id", 2)
        .u32("tokenizer.ggml.unknown_token_id", 0)
        .bool("tokenizer.ggml.add_bos_token", false)
        .str("tokenizer.chat_template", CHAT);
    let mut rng = ChaCha8Rng::seed_from_u64(c.seed);
    let mut data: Vec<Vec<u8>> = Vec::new();
    let mut tensor = |name: &str, ty: QuantType, ne: &[u64], values: Vec<f32>| -> Result<()> {
        w.tensor(name, ty, ne);
        data.push(quant::quantize(ty, &values)?);
        Ok(())
    };
    let (h, f) = (c.hidden as u64, c.ffn as u64);
    let head_dim = (c.hidden / c.heads) as u64;
    let kv = head_dim * c.kv_heads as u64;
    // A Gemma multiplies its embeddings by √hidden; layers would not be heard beside larger ones.
    let embedding = if family.grows_embeddings { 1.0 / (c.hidden as f32).sqrt() } else { 1.0 };
    tensor("token_embd.weight", c.embedding, &[h, vocab as u64], draw(&mut rng, vocab * c.hidden, embedding))?;
    // Residual writes are scaled down so that depth does not blow the stream up.
    let residual = 1.0 / (2.0 * c.layers as f32).sqrt();
    let shape = |l: Linear| match l {
        Linear::Q => (h, h),
        Linear::K | Linear::V => (kv, h),
        Linear::Output => (h, h),
        Linear::Gate | Linear::Up => (f, h),
        Linear::Down => (h, f),
    };
    let norms = |name: &str, width: u64, rng: &mut ChaCha8Rng| {
        let values = draw(rng, width as usize, 0.1).iter().map(|v| 1.0 + v).collect();
        let bias = family.layer_norm.then(|| (format!("{name}.bias"), draw(rng, width as usize, 0.1)));
        std::iter::once((format!("{name}.weight"), values)).chain(bias).collect::<Vec<_>>()
    };
    for l in 0..c.layers {
        // Those of every family come first.
        let first = [Norm::Attn, Norm::Ffn];
        let all = first.into_iter().chain(Norm::ALL.into_iter().filter(|n| !first.contains(n)));
        for norm in all.filter(|n| family.norms.contains(n)) {
            let width = match norm {
                Norm::Q if family.whole_qk_norm => h,
                Norm::K if family.whole_qk_norm => kv,
                Norm::Q | Norm::K => head_dim,
                _ => h,
            };
            for (name, values) in norms(&format!("blk.{l}.{}", norm.name()), width, &mut rng) {
                tensor(&name, QuantType::F32, &[width], values)?;
            }
        }
        let biased = |x: Linear| {
            family.biases.contains(&x) || c.biases && c.arch == TinyArch::Llama && x.name().starts_with("attn")
        };
        let alone = |x: &Linear| !family.fused.iter().any(|f| f.linears.contains(x));
        let fused = family.fused.iter().map(|f: &Fused| (f.name, f.linears.to_vec()));
        let single = Linear::ALL.into_iter().filter(|x| alone(x) && (family.gated || *x != Linear::Gate));
        for (name, linears) in fused.chain(single.map(|x| (x.name(), vec![x]))) {
            let out: u64 = linears.iter().map(|x| shape(*x).0).sum();
            let input = shape(linears[0]).1;
            let gain = if matches!(linears[0], Linear::Output | Linear::Down) { residual } else { 1.0 };
            let values = draw(&mut rng, (out * input) as usize, gain / (input as f32).sqrt());
            tensor(&format!("blk.{l}.{name}.weight"), c.linear, &[input, out], values)?;
            if biased(linears[0]) {
                let values = draw(&mut rng, out as usize, 0.5);
                tensor(&format!("blk.{l}.{name}.bias"), QuantType::F32, &[out], values)?;
            }
        }
    }
    if family.decoder {
        tensor("output_norm.weight", QuantType::F32, &[h], vec![1.0; c.hidden])?;
    } else {
        for (name, values) in norms("token_embd_norm", h, &mut rng) {
            tensor(&name, QuantType::F32, &[h], values)?;
        }
        tensor("token_types.weight", QuantType::F32, &[h, 2], draw(&mut rng, 2 * c.hidden, 0.5))?;
    }
    if family.positions {
        let values = draw(&mut rng, c.context * c.hidden, 0.5);
        tensor("position_embd.weight", QuantType::F32, &[h, c.context as u64], values)?;
    }
    if c.stretch == Stretch::Factors {
        for (name, step) in family.factors.iter().zip([1.0, 3.0]) {
            let factors = (0..head_dim / 2).map(|i| 1.0 + step * i as f32).collect();
            tensor(name, QuantType::F32, &[head_dim / 2], factors)?;
        }
    }
    let mut out = Vec::new();
    w.finish(&mut out, |i| Ok(&data[i]))?;
    Ok(out)
}

const CHAT: &str = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// GPT-2's spelling of a byte.
fn spell(b: u8) -> char {
    let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(b) {
        b as char
    } else {
        char::from_u32(256 + (0..b).filter(|x| !printable(*x)).count() as u32).unwrap_or('?')
    }
}

/// Tokens, merges and token types: specials, bytes, then merges that spell the words above.
fn vocabulary() -> (Vec<String>, Vec<String>, Vec<i32>) {
    let mut tokens: Vec<String> = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(String::from).to_vec();
    let mut kinds = vec![3; tokens.len()];
    tokens.extend((0..=255u8).map(|b| spell(b).to_string()));
    let mut merges = Vec::new();
    for word in WORDS.split_whitespace() {
        // " word" grows from the left, one character at a time; shared prefixes are shared.
        let mut left = spell(b' ').to_string();
        for c in word.chars() {
            let joined = format!("{left}{c}");
            if !tokens.contains(&joined) {
                merges.push(format!("{left} {c}"));
                tokens.push(joined.clone());
            }
            left = joined;
        }
    }
    kinds.resize(tokens.len(), 1);
    (tokens, merges, kinds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::Gguf;
    use crate::model_spec::ModelSpec;

    #[test]
    fn is_a_strict_gguf_and_the_same_every_time() {
        let a = base(&TinyConfig::default()).unwrap();
        assert_eq!(a, base(&TinyConfig::default()).unwrap());
        assert_ne!(a, base(&TinyConfig { seed: 2, ..TinyConfig::default() }).unwrap());
        let g = Gguf::parse(&a).unwrap();
        let s = ModelSpec::from_gguf(&g).unwrap();
        assert_eq!((s.n_layer, s.hidden, s.n_kv_head, s.output.tied), (4, 64, 2, true));
        for n in (0..a.len()).step_by(997) {
            assert!(Gguf::parse(&a[..n]).is_err(), "prefix of {n} bytes was accepted");
        }
    }
}
