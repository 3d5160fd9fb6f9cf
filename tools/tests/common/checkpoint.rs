//! Checkpoints as Hugging Face's transformers saves them, made here.

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Tensors by name: shape, and values that tell every element of every tensor apart.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A checkpoint about to be written.
#[derive(Clone)]
pub(crate) struct Checkpoint {
    pub(crate) config: Value,
    pub(crate) tokenizer: Value,
    pub(crate) tokenizer_config: Value,
    pub(crate) tensors: Tensors,
}

pub(crate) const HIDDEN: usize = 8;
pub(crate) const FFN: usize = 12;
pub(crate) const VOCAB: usize = 10;
pub(crate) const HEADS: usize = 2;
pub(crate) const KV_HEADS: usize = 1;
pub(crate) const HEAD: usize = 4;
pub(crate) const LAYERS: usize = 2;

/// Values for a new tensor.
pub(crate) fn values(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7 + seed * 13) % 101) as f32 / 64.0 - 0.75).collect()
}

impl Checkpoint {
    /// A decoder of this class with the tensors of a Llama, tied.
    pub(crate) fn decoder(class: &str) -> Self {
        let config = json!({
            "architectures": [class], "model_type": "x", "torch_dtype": "float32", "hidden_size": HIDDEN,
            "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS, "vocab_size": VOCAB, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": true,
        });
        let mut out = Self {
            config,
            tokenizer: byte_level(),
            tokenizer_config: json!({"eos_token": "<end>", "chat_template": "{{ messages }}"}),
            tensors: Tensors::new(),
        };
        out.add("model.embed_tokens.weight", &[VOCAB, HIDDEN]);
        out.add("model.norm.weight", &[HIDDEN]);
        let (q, kv) = (HEADS * HEAD, KV_HEADS * HEAD);
        for l in 0..LAYERS {
            for (name, rows, cols) in [
                ("self_attn.q_proj", q, HIDDEN),
                ("self_attn.k_proj", kv, HIDDEN),
                ("self_attn.v_proj", kv, HIDDEN),
                ("self_attn.o_proj", HIDDEN, q),
                ("mlp.gate_proj", FFN, HIDDEN),
                ("mlp.up_proj", FFN, HIDDEN),
                ("mlp.down_proj", HIDDEN, FFN),
            ] {
                out.add(&format!("model.layers.{l}.{name}.weight"), &[rows, cols]);
            }
            for name in ["input_layernorm", "post_attention_layernorm"] {
                out.add(&format!("model.layers.{l}.{name}.weight"), &[HIDDEN]);
            }
        }
        out
    }

    /// Adds a tensor.
    pub(crate) fn add(&mut self, name: &str, shape: &[usize]) {
        let seed = self.tensors.len();
        self.tensors.insert(name.to_owned(), (shape.to_vec(), values(shape.iter().product(), seed)));
    }

    /// Adds one to each layer.
    pub(crate) fn add_to_layers(&mut self, name: &str, shape: &[usize]) {
        (0..LAYERS).for_each(|l| self.add(&format!("model.layers.{l}.{name}"), shape));
    }

    /// Removes the tensors whose names have this in them.
    pub(crate) fn remove(&mut self, part: &str) {
        self.tensors.retain(|name, _| !name.contains(part));
    }

    /// Sets keys of `config.json`.
    pub(crate) fn set(&mut self, keys: Value) {
        let Value::Object(keys) = keys else { panic!("not an object: {keys}") };
        keys.into_iter().for_each(|(k, v)| self.config[k] = v);
    }

    /// Writes the folder, its tensors in so many files.
    pub(crate) fn write(&self, folder: &Path, shards: usize) {
        std::fs::create_dir_all(folder).unwrap();
        let put = |name: &str, v: &Value| std::fs::write(folder.join(name), v.to_string()).unwrap();
        put("config.json", &self.config);
        put("tokenizer.json", &self.tokenizer);
        put("tokenizer_config.json", &self.tokenizer_config);
        let bytes: BTreeMap<&String, Vec<u8>> =
            self.tensors.iter().map(|(n, (_, v))| (n, v.iter().flat_map(|x| x.to_le_bytes()).collect())).collect();
        let views: Vec<(String, TensorView<'_>)> = self
            .tensors
            .iter()
            .map(|(n, (shape, _))| (n.clone(), TensorView::new(Dtype::F32, shape.clone(), &bytes[n]).unwrap()))
            .collect();
        if shards == 1 {
            return std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap())
                .unwrap();
        }
        let mut map = serde_json::Map::new();
        for (i, part) in views.chunks(views.len().div_ceil(shards)).enumerate() {
            let name = format!("model-{i}.safetensors");
            std::fs::write(folder.join(&name), safetensors::serialize(part.to_vec(), None).unwrap()).unwrap();
            part.iter().for_each(|(tensor, _)| {
                map.insert(tensor.clone(), json!(name));
            });
        }
        put("model.safetensors.index.json", &json!({"weight_map": map}));
    }
}

/// A byte-level tokenizer of eight tokens, two of them added, as SmolLM has it.
pub(crate) fn byte_level() -> Value {
    json!({
        "added_tokens": [
            {"id": 6, "content": "<end>", "special": true},
            {"id": 7, "content": "<tool\u{2581}x>", "special": false},
        ],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        ]},
        "post_processor": null,
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "\u{120}": 5},
            "merges": [["a", "b"], ["ab", "c"]],
        },
    })
}
