//! PEFT folders and bases made here.

use conpet_formats::bundle::manifest::BaseRef;
use conpet_formats::exchange::{Parcel, llama_lora};
use conpet_formats::fingerprint::base_ref;
use conpet_formats::gguf::Gguf;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::tiny::{self, TinyArch, TinyConfig};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A temporary folder with a base.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) spec: ModelSpec,
    pub(crate) base: BaseRef,
}

impl World {
    pub(crate) fn of(c: &TinyConfig) -> Self {
        let bytes = tiny::base(c).unwrap();
        let gguf = Gguf::parse(&bytes).unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("base.gguf"), &bytes).unwrap();
        Self { dir, spec: ModelSpec::from_gguf(&gguf).unwrap(), base: base_ref(&gguf).unwrap() }
    }

    pub(crate) fn config() -> TinyConfig {
        TinyConfig { layers: 2, hidden: 32, heads: 4, kv_heads: 2, ffn: 64, ..TinyConfig::default() }
    }

    pub(crate) fn llama() -> Self {
        Self::of(&Self::config())
    }

    pub(crate) fn gemma() -> Self {
        Self::of(&TinyConfig { arch: TinyArch::Gemma3, ..Self::config() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A parcel as a llama.cpp LoRA file.
    pub(crate) fn gguf(&self, p: &Parcel) -> Vec<u8> {
        let mut out = Vec::new();
        llama_lora::write(&mut out, p, &self.spec, &self.base, "a task").unwrap();
        out
    }
}

/// Numbers that belong to a name, about 0.25 to 1.75 and no half-precision ones.
pub(crate) fn numbers(name: &str, n: usize) -> Vec<f32> {
    let mut state = name.bytes().fold(7u64, |h, b| h.wrapping_mul(131).wrapping_add(u64::from(b)));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        0.25 + (state >> 40) as f32 / (1 << 24) as f32 * 1.5
    };
    (0..n).map(|_| next()).collect()
}

/// A PEFT folder to be written, perhaps after it was spoiled.
pub(crate) struct Folder {
    pub(crate) config: Map<String, Value>,
    pub(crate) shapes: BTreeMap<String, Vec<usize>>,
    pub(crate) half: bool,
    pub(crate) metadata: BTreeMap<String, String>,
}

impl Folder {
    fn new(peft_type: &str) -> Self {
        // What PEFT 0.21 writes whatever the kind.
        let config = json!({
            "task_type": "CAUSAL_LM", "peft_type": peft_type, "auto_mapping": null, "peft_version": "0.21.2",
            "base_model_name_or_path": "x/y", "revision": null, "inference_mode": true, "modules_to_save": null,
        });
        let Value::Object(config) = config else { unreachable!() };
        let metadata = BTreeMap::from([("format".into(), "pt".into())]);
        Self { config, shapes: BTreeMap::new(), half: false, metadata }
    }

    /// LoRA at these modules with these ranks; all that PEFT 0.21 writes beside is there.
    pub(crate) fn lora(world: &World, modules: &[(&str, usize)]) -> Self {
        let mut f = Self::new("LORA");
        let beside = json!({
            "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "target_modules": modules.iter().map(|m| m.0).collect::<Vec<_>>(),
            "exclude_modules": null, "fan_in_fan_out": false, "bias": "none", "use_rslora": false,
            "init_lora_weights": true, "layers_to_transform": null, "layers_pattern": null, "rank_pattern": {},
            "alpha_pattern": {}, "megatron_config": null, "megatron_core": "megatron.core", "loftq_config": {},
            "use_dora": false, "use_qalora": false, "qalora_group_size": 16, "layer_replication": null,
            "lora_bias": false, "target_parameters": null, "trainable_token_indices": null, "ensure_weight_tying": false,
        });
        f.config.extend(beside.as_object().unwrap().clone());
        for (module, rank) in modules {
            let [out, input] = shape(&world.spec, module);
            f.shapes.insert(format!("base_model.model.{module}.lora_A.weight"), vec![*rank, input]);
            f.shapes.insert(format!("base_model.model.{module}.lora_B.weight"), vec![out, *rank]);
        }
        f
    }

    /// (IA)³ where PEFT puts it by default, in both layers.
    pub(crate) fn ia3(world: &World) -> Self {
        let mut f = Self::new("IA3");
        f.set("target_modules", json!(["k_proj", "v_proj", "down_proj"]))
            .set("feedforward_modules", json!(["down_proj"]));
        f.set("fan_in_fan_out", json!(false)).set("init_ia3_weights", json!(true)).set("exclude_modules", json!(null));
        for layer in 0..2 {
            for m in ["self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"] {
                let module = format!("model.layers.{layer}.{m}");
                let [out, input] = shape(&world.spec, &module);
                let shape = if m == "mlp.down_proj" { vec![1, input] } else { vec![out, 1] };
                f.shapes.insert(format!("base_model.model.{module}.ia3_l"), shape);
            }
        }
        f
    }

    fn tokens(kind: &str, world: &World, n: usize, heads: usize, token_dim: usize, width: usize) -> Self {
        let mut f = Self::new(kind);
        f.set("num_virtual_tokens", json!(n)).set("token_dim", json!(token_dim));
        f.set("num_transformer_submodules", json!(1)).set("num_attention_heads", json!(heads));
        f.set("num_layers", json!(world.spec.n_layer));
        f.shapes.insert("prompt_embeddings".into(), vec![n, width]);
        f
    }

    pub(crate) fn prompt(world: &World, n: usize) -> Self {
        let s = &world.spec;
        Self::tokens("PROMPT_TUNING", world, n, s.n_head, s.hidden, s.hidden)
    }

    pub(crate) fn prefix(world: &World, n: usize) -> Self {
        let s = &world.spec;
        Self::tokens("PREFIX_TUNING", world, n, s.n_kv_head, s.kv_dim(), s.n_layer * 2 * s.kv_dim())
    }

    pub(crate) fn set(&mut self, key: &str, value: Value) -> &mut Self {
        self.config.insert(key.into(), value);
        self
    }

    /// Writes it under a new name.
    pub(crate) fn write(&self, world: &World) -> PathBuf {
        let n = std::fs::read_dir(world.dir.path()).unwrap().count();
        let dir = world.path(&format!("adapter-{n}"));
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("adapter_config.json"), serde_json::to_vec_pretty(&self.config).unwrap()).unwrap();
        let data: Vec<(String, Vec<usize>, Vec<u8>)> = self
            .shapes
            .iter()
            .map(|(name, shape)| {
                let short = name.strip_prefix("base_model.model.").unwrap_or(name);
                let v = numbers(short, shape.iter().product());
                let bytes = if self.half {
                    v.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect()
                } else {
                    v.iter().flat_map(|x| x.to_le_bytes()).collect()
                };
                (name.clone(), shape.clone(), bytes)
            })
            .collect();
        let dtype = if self.half { Dtype::F16 } else { Dtype::F32 };
        let views = data.iter().map(|(n, s, b)| (n, TensorView::new(dtype, s.clone(), b).unwrap()));
        let metadata = self.metadata.clone().into_iter().collect();
        std::fs::write(dir.join("adapter_model.safetensors"), safetensors::serialize(views, Some(metadata)).unwrap())
            .unwrap();
        dir
    }
}

/// `[out, in]` of a linear by its Hugging Face name.
fn shape(s: &ModelSpec, module: &str) -> [usize; 2] {
    match module.rsplit('.').next().unwrap() {
        "q_proj" => [s.q_dim(), s.hidden],
        "k_proj" | "v_proj" => [s.kv_dim(), s.hidden],
        "o_proj" => [s.hidden, s.q_dim()],
        "down_proj" => [s.hidden, s.ffn],
        _ => [s.ffn, s.hidden],
    }
}
