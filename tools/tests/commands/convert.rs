//! Checkpoints turned into bases, family by family, and bases into other types.

use crate::common::Place;
use crate::common::checkpoint::{Checkpoint, FFN, HEAD, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCAB};
use conpet_formats::gguf::{Gguf, TensorType};
use conpet_formats::quant::{self, QuantType};
use conpet_tools::ExitStatus;
use serde_json::{Value, json};

/// Converts a checkpoint to F32; the bytes of the base.
#[track_caller]
fn converted(checkpoint: &Checkpoint) -> Vec<u8> {
    let p = Place::new();
    checkpoint.write(&p.path("model"), 1);
    let ran = p.run("convert @/model -o @/out.gguf --outtype f32");
    assert_eq!(ran.status, ExitStatus::Success, "{}", ran.stderr);
    p.bytes("out.gguf")
}

/// What a conversion that must fail says.
#[track_caller]
fn refused(checkpoint: &Checkpoint) -> String {
    let p = Place::new();
    checkpoint.write(&p.path("model"), 1);
    let ran = p.run("convert @/model -o @/out.gguf");
    assert_ne!(ran.status, ExitStatus::Success);
    assert!(!p.path("out.gguf").exists(), "nothing is left of a conversion that failed");
    ran.stderr
}

/// The values of a tensor, and its sizes, fastest first.
#[track_caller]
fn tensor(bytes: &[u8], name: &str) -> (Vec<u64>, Vec<f32>) {
    let g = Gguf::parse(bytes).unwrap();
    let t = g.tensor(name).unwrap_or_else(|| panic!("no tensor {name}"));
    let TensorType::Known(ty) = t.ty else { panic!("{name} is {}", t.ty) };
    let mut out = vec![0.0; (t.rows() * t.cols()) as usize];
    quant::dequantize(ty, g.data(t), &mut out);
    (t.ne[..t.n_dims].to_vec(), out)
}

/// Checks that a tensor is the checkpoint's, unchanged.
#[track_caller]
fn same(bytes: &[u8], name: &str, checkpoint: &Checkpoint, from: &str) {
    let (shape, values) = &checkpoint.tensors[from];
    let ne: Vec<u64> = shape.iter().rev().map(|n| *n as u64).collect();
    assert_eq!(tensor(bytes, name), (ne, values.clone()), "{name}");
}

/// Checks that this reader takes the base, with all its keys and tensors.
#[track_caller]
fn counted(bytes: &[u8], arch: &str, tensors: usize) {
    let g = Gguf::parse(bytes).unwrap();
    assert_eq!((g.required_str("general.architecture").unwrap(), g.tensors().len()), (arch, tensors));
}

#[test]
fn a_llama_has_its_queries_and_keys_in_pairs() {
    let mut c = Checkpoint::decoder("LlamaForCausalLM");
    c.set(json!({"rope_theta": 500000.0, "tie_word_embeddings": false, "attention_bias": true}));
    c.add("lm_head.weight", &[VOCAB, HIDDEN]);
    for (name, n) in
        [("q_proj", HEADS * HEAD), ("k_proj", KV_HEADS * HEAD), ("v_proj", KV_HEADS * HEAD), ("o_proj", HIDDEN)]
    {
        c.add_to_layers(&format!("self_attn.{name}.bias"), &[n]);
    }
    let b = converted(&c);
    counted(&b, "llama", 3 + LAYERS * 13);
    let g = Gguf::parse(&b).unwrap();
    let num = |key: &str| g.required_u32(&format!("llama.{key}")).unwrap() as usize;
    assert_eq!((num("block_count"), num("context_length"), num("embedding_length")), (LAYERS, 64, HIDDEN));
    assert_eq!((num("attention.head_count"), num("attention.head_count_kv")), (HEADS, KV_HEADS));
    assert_eq!((num("feed_forward_length"), num("vocab_size"), num("rope.dimension_count")), (FFN, VOCAB, HEAD));
    assert_eq!(g.required_f32("llama.rope.freq_base").unwrap(), 500_000.0);
    assert_eq!(g.required_f32("llama.attention.layer_norm_rms_epsilon").unwrap(), 1e-5);
    same(&b, "output.weight", &c, "lm_head.weight");
    same(&b, "blk.1.attn_v.weight", &c, "model.layers.1.self_attn.v_proj.weight");
    same(&b, "blk.1.ffn_down.weight", &c, "model.layers.1.mlp.down_proj.weight");
    same(&b, "blk.0.ffn_norm.weight", &c, "model.layers.0.post_attention_layernorm.weight");
    // Of each head of four rows, the order is 0, 2, 1, 3.
    let order = |rows: usize| (0..rows).map(|r| r / 4 * 4 + [0, 2, 1, 3][r % 4]);
    for (name, from, rows) in [("attn_q", "q_proj", HEADS * HEAD), ("attn_k", "k_proj", KV_HEADS * HEAD)] {
        let (_, values) = &c.tensors[&format!("model.layers.1.self_attn.{from}.weight")];
        let want: Vec<f32> = order(rows).flat_map(|r| values[r * HIDDEN..(r + 1) * HIDDEN].to_vec()).collect();
        assert_eq!(tensor(&b, &format!("blk.1.{name}.weight")).1, want);
        let (_, values) = &c.tensors[&format!("model.layers.1.self_attn.{from}.bias")];
        assert_eq!(tensor(&b, &format!("blk.1.{name}.bias")).1, order(rows).map(|r| values[r]).collect::<Vec<_>>());
    }
}

#[test]
fn a_tokenizer_keeps_its_tokens_kinds_merges_and_special_ids() {
    let mut c = Checkpoint::decoder("LlamaForCausalLM");
    c.set(json!({"eos_token_id": [6, 7], "bos_token_id": 0}));
    let b = converted(&c);
    let g = Gguf::parse(&b).unwrap();
    let texts = |key: &str| -> Vec<String> {
        let all = g.array(key).unwrap().unwrap();
        all.strings().unwrap().map(|s| String::from_utf8(s.to_vec()).unwrap()).collect()
    };
    assert_eq!(
        (g.str("tokenizer.ggml.model").unwrap(), g.str("tokenizer.ggml.pre").unwrap()),
        (Some("gpt2"), Some("smollm"))
    );
    let tokens = ["a", "b", "c", "ab", "abc", "\u{120}", "<end>", "<tool x>", "[PAD8]", "[PAD9]"];
    assert_eq!(texts("tokenizer.ggml.tokens"), tokens);
    let kinds: Vec<i32> = g.array("tokenizer.ggml.token_type").unwrap().unwrap().i32s().unwrap().collect();
    assert_eq!(kinds, [1, 1, 1, 1, 1, 1, 3, 4, 5, 5]);
    assert_eq!(texts("tokenizer.ggml.merges"), ["a b", "ab c"]);
    assert_eq!(g.u32("tokenizer.ggml.eos_token_id").unwrap(), Some(6));
    assert_eq!(g.u32("tokenizer.ggml.bos_token_id").unwrap(), Some(0));
    assert_eq!(g.str("tokenizer.chat_template").unwrap(), Some("{{ messages }}"));
}

#[test]
fn a_pre_tokenizer_is_named_by_what_it_does_or_refused() {
    let cl100k = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let split = |re: &str| {
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": re}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
        ]})
    };
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
    for (pre, whole, name) in [
        (split(cl100k), true, "llama-bpe"),
        (split(cl100k), false, "dbrx"),
        (split(&cl100k.replace("{1,3}", "")), false, "qwen2"),
        (bytes, false, "gpt-2"),
    ] {
        let mut c = Checkpoint::decoder("LlamaForCausalLM");
        c.tokenizer["pre_tokenizer"] = pre;
        c.tokenizer["model"]["ignore_merges"] = json!(whole);
        let b = converted(&c);
        assert_eq!(Gguf::parse(&b).unwrap().str("tokenizer.ggml.pre").unwrap(), Some(name));
    }
    let mut c = Checkpoint::decoder("LlamaForCausalLM");
    c.tokenizer["pre_tokenizer"] = split(r"\w+");
    assert!(refused(&c).contains(r"the pre-tokenizer is not one that is known"));
}

#[test]
fn rope_is_stretched_as_the_checkpoint_says() {
    let with = |scaling: Value| {
        let mut c = Checkpoint::decoder("LlamaForCausalLM");
        c.set(json!({"rope_scaling": scaling}));
        c
    };
    let b = converted(&with(json!({"type": "linear", "factor": 4.0})));
    let g = Gguf::parse(&b).unwrap();
    assert_eq!(g.str("llama.rope.scaling.type").unwrap(), Some("linear"));
    assert_eq!(g.f32("llama.rope.scaling.factor").unwrap(), Some(4.0));
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 30.0});
    let b = converted(&with(yarn));
    let g = Gguf::parse(&b).unwrap();
    assert_eq!(g.str("llama.rope.scaling.type").unwrap(), Some("yarn"));
    assert_eq!(g.u32("llama.rope.scaling.original_context_length").unwrap(), Some(16));
    assert_eq!(g.f32("llama.rope.scaling.yarn_beta_fast").unwrap(), Some(30.0));
    let llama3 = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    let b = converted(&with(llama3));
    // The first wave has a length of 2π, shorter than 64 / 4; the second of 200π, longer than 64.
    assert_eq!(tensor(&b, "rope_freqs.weight"), (vec![2], vec![1.0, 8.0]));
    assert!(refused(&with(json!({"rope_type": "dynamic", "factor": 2.0}))).contains("dynamic"));
    assert!(refused(&with(json!({"rope_type": "linear", "factor": 2.0, "odd": 1}))).contains("odd"));
}

#[test]
fn qwens_have_biases_or_norms_and_no_pairs() {
    let mut c = Checkpoint::decoder("Qwen2ForCausalLM");
    c.set(json!({"use_sliding_window": false, "sliding_window": 32, "max_window_layers": 1}));
    for (name, n) in [("q_proj", HEADS * HEAD), ("k_proj", KV_HEADS * HEAD), ("v_proj", KV_HEADS * HEAD)] {
        c.add_to_layers(&format!("self_attn.{name}.bias"), &[n]);
    }
    let b = converted(&c);
    counted(&b, "qwen2", 2 + LAYERS * 12);
    same(&b, "blk.0.attn_q.weight", &c, "model.layers.0.self_attn.q_proj.weight");
    same(&b, "blk.0.attn_k.bias", &c, "model.layers.0.self_attn.k_proj.bias");
    c.set(json!({"use_sliding_window": true}));
    assert!(refused(&c).contains("sliding_window is 32"));

    let mut c = Checkpoint::decoder("Qwen3ForCausalLM");
    c.set(json!({"head_dim": HEAD}));
    c.add_to_layers("self_attn.q_norm.weight", &[HEAD]);
    c.add_to_layers("self_attn.k_norm.weight", &[HEAD]);
    let b = converted(&c);
    counted(&b, "qwen3", 2 + LAYERS * 11);
    same(&b, "blk.1.attn_q_norm.weight", &c, "model.layers.1.self_attn.q_norm.weight");
    assert_eq!(Gguf::parse(&b).unwrap().u32("qwen3.attention.key_length").unwrap(), Some(HEAD as u32));
}

/// A Gemma's tokenizer: pieces with bytes to fall back on.
fn pieces(c: &mut Checkpoint) {
    c.tokenizer["model"]["byte_fallback"] = json!(true);
    c.tokenizer["model"]["unk_token"] = json!("c");
    c.tokenizer["pre_tokenizer"] = Value::Null;
}

#[test]
fn gemmas_have_one_added_to_their_norms() {
    for (class, arch) in [("Gemma2ForCausalLM", "gemma2"), ("Gemma3ForCausalLM", "gemma3")] {
        let mut c = Checkpoint::decoder(class);
        pieces(&mut c);
        c.set(json!({
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "head_dim": HEAD,
            "query_pre_attn_scalar": HEAD, "sliding_window": 16,
        }));
        c.add_to_layers("pre_feedforward_layernorm.weight", &[HIDDEN]);
        c.add_to_layers("post_feedforward_layernorm.weight", &[HIDDEN]);
        if arch == "gemma3" {
            c.add_to_layers("self_attn.q_norm.weight", &[HEAD]);
            c.add_to_layers("self_attn.k_norm.weight", &[HEAD]);
        } else {
            c.set(json!({"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}));
        }
        let b = converted(&c);
        counted(&b, arch, 2 + LAYERS * if arch == "gemma3" { 13 } else { 11 });
        for (name, from) in [
            ("output_norm", "model.norm"),
            ("blk.1.post_ffw_norm", "model.layers.1.post_feedforward_layernorm"),
            ("blk.1.ffn_norm", "model.layers.1.pre_feedforward_layernorm"),
            ("blk.0.post_attention_norm", "model.layers.0.post_attention_layernorm"),
        ] {
            let want: Vec<f32> = c.tensors[&format!("{from}.weight")].1.iter().map(|v| v + 1.0).collect();
            assert_eq!(tensor(&b, &format!("{name}.weight")).1, want, "{name}");
        }
        let g = Gguf::parse(&b).unwrap();
        assert_eq!(g.u32(&format!("{arch}.attention.sliding_window")).unwrap(), Some(16));
        assert_eq!(g.bool("tokenizer.ggml.add_space_prefix").unwrap(), Some(false));
        assert_eq!(g.f32(&format!("{arch}.final_logit_softcapping")).unwrap(), (arch == "gemma2").then_some(30.0));
        assert_eq!(g.f32(&format!("{arch}.rope.freq_base_swa")).unwrap(), (arch == "gemma3").then_some(10_000.0));
        c.set(json!({"query_pre_attn_scalar": 144}));
        assert!(refused(&c).contains("query_pre_attn_scalar is 144"));
    }
}

#[test]
fn pieces_get_their_scores_from_the_order_of_merges() {
    let mut c = Checkpoint::decoder("LlamaForCausalLM");
    pieces(&mut c);
    c.tokenizer["normalizer"] = json!({"type": "Prepend", "prepend": "\u{2581}"});
    c.tokenizer["model"]["vocab"]["<0x0A>"] = json!(8);
    let b = converted(&c);
    let g = Gguf::parse(&b).unwrap();
    let scores: Vec<f32> = g.array("tokenizer.ggml.scores").unwrap().unwrap().f32s().unwrap().collect();
    // "ab" is made by the first merge, "abc" by the second.
    assert_eq!(scores[3..5], [0.0, -1.0]);
    let kinds: Vec<i32> = g.array("tokenizer.ggml.token_type").unwrap().unwrap().i32s().unwrap().collect();
    assert_eq!(kinds, [1, 1, 2, 1, 1, 1, 3, 4, 6, 5]);
    assert_eq!(g.str("tokenizer.ggml.model").unwrap(), Some("llama"));
    // A space in front is what a reader takes if nothing is said.
    assert_eq!(g.bool("tokenizer.ggml.add_space_prefix").unwrap(), None);
}

#[test]
fn a_model_of_sentence_pieces_is_read() {
    let p = Place::new();
    let c = Checkpoint::decoder("LlamaForCausalLM");
    c.write(&p.path("model"), 1);
    std::fs::remove_file(p.path("model/tokenizer.json")).unwrap();
    let piece = |text: &str, score: f32, kind: u8| {
        let mut inner = vec![10, text.len() as u8];
        inner.extend(text.bytes());
        inner.push(21);
        inner.extend(score.to_le_bytes());
        inner.extend([24, kind]);
        [vec![10, inner.len() as u8], inner].concat()
    };
    let mut model = [piece("<unk>", 0.0, 2), piece("<s>", 0.0, 3), piece("\u{2581}a", -2.5, 1)].concat();
    // Trained as byte pairs, with nothing put in front.
    model.extend([18, 2, 24, 2, 26, 2, 24, 0]);
    std::fs::write(p.path("model/tokenizer.model"), &model).unwrap();
    assert_eq!(p.run("convert @/model -o @/out.gguf").status, ExitStatus::Success);
    let b = p.bytes("out.gguf");
    let g = Gguf::parse(&b).unwrap();
    let tokens: Vec<&[u8]> = g.array("tokenizer.ggml.tokens").unwrap().unwrap().strings().unwrap().collect();
    assert_eq!((tokens.len(), tokens[2]), (VOCAB, "\u{2581}a".as_bytes()));
    let kinds: Vec<i32> = g.array("tokenizer.ggml.token_type").unwrap().unwrap().i32s().unwrap().collect();
    assert_eq!(kinds[..4], [2, 3, 1, 5]);
    let scores: Vec<f32> = g.array("tokenizer.ggml.scores").unwrap().unwrap().f32s().unwrap().collect();
    assert_eq!(scores[2], -2.5);
    assert_eq!(g.bool("tokenizer.ggml.add_space_prefix").unwrap(), Some(false));
    // No prefix of it, nor a flipped byte, makes the program panic.
    for at in 0..model.len() {
        let mut bad = model.clone();
        bad[at] ^= 0x55;
        for bytes in [&model[..at], &bad] {
            std::fs::write(p.path("model/tokenizer.model"), bytes).unwrap();
            let _ = std::fs::remove_file(p.path("out.gguf"));
            p.run("convert @/model -o @/out.gguf");
        }
    }
}

#[test]
fn phi3_keeps_its_fused_linears_and_long_factors() {
    let mut c = Checkpoint::decoder("Phi3ForCausalLM");
    ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"].iter().for_each(|part| c.remove(part));
    c.add_to_layers("self_attn.qkv_proj.weight", &[(HEADS + 2 * KV_HEADS) * HEAD, HIDDEN]);
    c.add_to_layers("mlp.gate_up_proj.weight", &[2 * FFN, HIDDEN]);
    let scaling = json!({"type": "longrope", "long_factor": [1.0, 4.0], "short_factor": [1.0, 1.5]});
    c.set(json!({"original_max_position_embeddings": 16, "rope_scaling": scaling, "sliding_window": 12}));
    let b = converted(&c);
    counted(&b, "phi3", 4 + LAYERS * 6);
    same(&b, "blk.1.attn_qkv.weight", &c, "model.layers.1.self_attn.qkv_proj.weight");
    same(&b, "blk.1.ffn_up.weight", &c, "model.layers.1.mlp.gate_up_proj.weight");
    assert_eq!(tensor(&b, "rope_factors_long.weight").1, [1.0, 4.0]);
    assert_eq!(tensor(&b, "rope_factors_short.weight").1, [1.0, 1.5]);
    let g = Gguf::parse(&b).unwrap();
    // √(1 + ln 4 / ln 16)
    assert!((g.required_f32("phi3.rope.scaling.attn_factor").unwrap() - 1.5f32.sqrt()).abs() < 1e-6);
    assert_eq!(g.u32("phi3.attention.sliding_window").unwrap(), Some(12));
    c.set(json!({"rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0, 1.5]}}));
    assert!(refused(&c).contains("1 numbers in long_factor where 2 are needed"));
}

#[test]
fn granite_smollm3_and_olmo2() {
    let mut c = Checkpoint::decoder("GraniteForCausalLM");
    c.set(json!({
        "attention_multiplier": 0.5, "embedding_multiplier": 12.0, "residual_multiplier": 0.25, "logits_scaling": 8.0,
    }));
    let b = converted(&c);
    counted(&b, "granite", 2 + LAYERS * 9);
    let g = Gguf::parse(&b).unwrap();
    let scale = |key: &str| g.required_f32(&format!("granite.{key}")).unwrap();
    let all = ["attention.scale", "embedding_scale", "residual_scale", "logit_scale"].map(scale);
    assert_eq!(all, [0.5, 12.0, 0.25, 8.0]);

    let mut c = Checkpoint::decoder("SmolLM3ForCausalLM");
    c.set(json!({"no_rope_layers": [1, 1], "no_rope_layer_interval": 4}));
    counted(&converted(&c), "smollm3", 2 + LAYERS * 9);
    c.set(json!({"no_rope_layers": [1, 0]}));
    assert!(refused(&c).contains("no_rope_layers is not every fourth layer"));

    let mut c = Checkpoint::decoder("Olmo2ForCausalLM");
    c.remove("input_layernorm");
    c.add_to_layers("post_feedforward_layernorm.weight", &[HIDDEN]);
    c.add_to_layers("self_attn.q_norm.weight", &[HEADS * HEAD]);
    c.add_to_layers("self_attn.k_norm.weight", &[KV_HEADS * HEAD]);
    let b = converted(&c);
    counted(&b, "olmo2", 2 + LAYERS * 11);
    same(&b, "blk.1.post_ffw_norm.weight", &c, "model.layers.1.post_feedforward_layernorm.weight");
    same(&b, "blk.0.attn_k_norm.weight", &c, "model.layers.0.self_attn.k_norm.weight");
}

/// A BERT, or a RoBERTa, without its tokenizer.
fn encoder(class: &str) -> Checkpoint {
    let mut c = Checkpoint::decoder(class);
    c.tensors.clear();
    c.config.as_object_mut().unwrap().retain(|k, _| k != "rms_norm_eps" && k != "num_key_value_heads");
    c.set(json!({"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, "pad_token_id": 1}));
    for (name, rows) in [("word", VOCAB), ("position", 64), ("token_type", 2)] {
        c.add(&format!("embeddings.{name}_embeddings.weight"), &[rows, HIDDEN]);
    }
    let norm = |c: &mut Checkpoint, name: &str| {
        ["weight", "bias"].iter().for_each(|part| c.add(&format!("{name}.{part}"), &[HIDDEN]));
    };
    norm(&mut c, "embeddings.LayerNorm");
    for l in 0..LAYERS {
        for (name, rows, cols) in [
            ("attention.self.query", HIDDEN, HIDDEN),
            ("attention.self.key", HIDDEN, HIDDEN),
            ("attention.self.value", HIDDEN, HIDDEN),
            ("attention.output.dense", HIDDEN, HIDDEN),
            ("intermediate.dense", FFN, HIDDEN),
            ("output.dense", HIDDEN, FFN),
        ] {
            c.add(&format!("encoder.layer.{l}.{name}.weight"), &[rows, cols]);
            c.add(&format!("encoder.layer.{l}.{name}.bias"), &[rows]);
        }
        norm(&mut c, &format!("encoder.layer.{l}.attention.output.LayerNorm"));
        norm(&mut c, &format!("encoder.layer.{l}.output.LayerNorm"));
    }
    c.add("pooler.dense.weight", &[HIDDEN, HIDDEN]);
    c
}

#[test]
fn a_bert_has_pieces_turned_around_and_says_how_it_pools() {
    let mut c = encoder("BertModel");
    let special = |id: usize, text: &str| json!({"id": id, "content": text, "special": true});
    c.tokenizer = json!({
        "added_tokens": [special(0, "[CLS]"), special(1, "[SEP]"), special(2, "[UNK]")],
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "[CLS]"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "[SEP]"}}],
            "pair": []},
        "model": {"type": "WordPiece", "continuing_subword_prefix": "##", "vocab":
            {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2, "lamp": 3, "##s": 4}},
    });
    c.tokenizer_config = json!({"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"});
    let p = Place::new();
    c.write(&p.path("model"), 1);
    let pooling = json!([{"type": "a.Transformer", "path": ""}, {"type": "a.Pooling", "path": "1_Pooling"}]);
    std::fs::write(p.path("model/modules.json"), pooling.to_string()).unwrap();
    std::fs::create_dir(p.path("model/1_Pooling")).unwrap();
    let mode = |key: &str| {
        std::fs::write(p.path("model/1_Pooling/config.json"), json!({key: true}).to_string()).unwrap();
        p.run("convert @/model -o @/out.gguf --outtype f32")
    };
    let ran = mode("pooling_mode_max_tokens");
    assert!(ran.stderr.contains("pooling by max_tokens is not supported"), "{}", ran.stderr);
    assert_eq!(mode("pooling_mode_mean_tokens").status, ExitStatus::Success);
    let b = p.bytes("out.gguf");
    counted(&b, "bert", 5 + LAYERS * 16);
    same(&b, "position_embd.weight", &c, "embeddings.position_embeddings.weight");
    same(&b, "blk.1.attn_output_norm.bias", &c, "encoder.layer.1.attention.output.LayerNorm.bias");
    same(&b, "blk.1.layer_output_norm.weight", &c, "encoder.layer.1.output.LayerNorm.weight");
    same(&b, "blk.0.ffn_up.bias", &c, "encoder.layer.0.intermediate.dense.bias");
    let g = Gguf::parse(&b).unwrap();
    assert_eq!(g.u32("bert.pooling_type").unwrap(), Some(1));
    assert_eq!(g.bool("bert.attention.causal").unwrap(), Some(false));
    let tokens: Vec<&[u8]> = g.array("tokenizer.ggml.tokens").unwrap().unwrap().strings().unwrap().collect();
    assert_eq!(tokens[..5].concat(), "[CLS][SEP][UNK]\u{2581}lamps".as_bytes());
    let id = |name: &str| g.u32(&format!("tokenizer.ggml.{name}_token_id")).unwrap();
    assert_eq!((id("bos"), id("eos"), id("seperator"), id("unknown")), (Some(0), Some(1), Some(1), Some(2)));
    let flag = |name: &str| g.bool(&format!("tokenizer.ggml.{name}")).unwrap();
    assert_eq!(
        (flag("add_bos_token"), flag("add_eos_token"), flag("normalizer.lowercase")),
        (Some(true), Some(true), Some(true))
    );
}

#[test]
fn a_roberta_loses_the_positions_it_never_uses() {
    let mut c = encoder("RobertaModel");
    c.tokenizer["pre_tokenizer"] = json!({"type": "ByteLevel", "add_prefix_space": false});
    let b = converted(&c);
    let (ne, values) = tensor(&b, "position_embd.weight");
    assert_eq!(ne, [HIDDEN as u64, 62]);
    assert_eq!(values, c.tensors["embeddings.position_embeddings.weight"].1[2 * HIDDEN..]);
    assert_eq!(Gguf::parse(&b).unwrap().u32("bert.context_length").unwrap(), Some(62));
}

#[test]
fn nothing_of_a_checkpoint_is_passed_over() {
    let good = Checkpoint::decoder("LlamaForCausalLM");
    let mut c = good.clone();
    c.set(json!({"num_experts": 8}));
    assert!(refused(&c).contains("num_experts is 8, and this key is not known"));
    let mut c = good.clone();
    c.set(json!({"quantization_config": {"bits": 4}}));
    assert!(refused(&c).contains("quantization_config"));
    let mut c = good.clone();
    c.set(json!({"hidden_act": "relu"}));
    assert!(refused(&c).contains("hidden_act is \"relu\""));
    let mut c = good.clone();
    c.add("model.layers.1.self_attn.q_proj.bias", &[HEADS * HEAD]);
    assert!(refused(&c).contains("tensor model.layers.1.self_attn.q_proj.bias"));
    let mut c = good.clone();
    c.remove("layers.1.mlp.up_proj");
    assert!(refused(&c).contains("lacks the tensor model.layers.1.mlp.up_proj.weight"));
    let mut c = good.clone();
    c.set(json!({"intermediate_size": 16}));
    assert!(refused(&c).contains("shape [12, 8] where config.json demands [16, 8]"));
    let mut c = good.clone();
    c.tensors.get_mut("model.norm.weight").unwrap().1[3] = f32::NAN;
    assert!(refused(&c).contains("tensor output_norm.weight: number 3 is NaN"));
    let mut c = good.clone();
    c.set(json!({"architectures": ["MixtralForCausalLM"]}));
    let said = refused(&c);
    assert!(said.contains("MixtralForCausalLM") && said.contains("LlamaForCausalLM"), "{said}");
    // A key that says nothing, and one that changes nothing.
    let mut c = good;
    c.set(json!({"some_new_key": null, "use_cache": true, "attention_dropout": 0.1}));
    converted(&c);
}

#[test]
fn shards_give_the_same_base_and_a_lost_one_is_named() {
    let p = Place::new();
    let c = Checkpoint::decoder("LlamaForCausalLM");
    c.write(&p.path("one/model"), 1);
    c.write(&p.path("many/model"), 3);
    for from in ["one", "many"] {
        let ran = p.run(&format!("convert @/{from}/model -o @/{from}.gguf --outtype bf16"));
        assert_eq!(ran.status, ExitStatus::Success, "{}", ran.stderr);
    }
    assert!(p.bytes("one.gguf") == p.bytes("many.gguf"));
    std::fs::remove_file(p.path("many/model/model-1.safetensors")).unwrap();
    let ran = p.run("convert @/many/model -o @/again.gguf");
    assert!(ran.stderr.contains("has no model-1.safetensors"), "{}", ran.stderr);
    let ran = p.run("convert @/one/model -o @/one.gguf");
    assert_eq!(ran.status, ExitStatus::Usage);
    assert!(ran.stderr.contains("already exists"), "{}", ran.stderr);
    let ran = p.run("convert @/one/model -o @/x.gguf --outtype q9");
    assert!(ran.status == ExitStatus::Usage && ran.stderr.contains("q4_k_m"), "{}", ran.stderr);
}

#[test]
fn a_base_is_quantized_by_the_rules_of_its_type() {
    let p = Place::new();
    let config = conpet_formats::tiny::TinyConfig {
        layers: 2,
        hidden: 256,
        ffn: 288,
        linear: QuantType::F32,
        embedding: QuantType::F32,
        ..conpet_formats::tiny::TinyConfig::default()
    };
    std::fs::write(p.path("f32.gguf"), conpet_formats::tiny::base(&config).unwrap()).unwrap();
    let types = |file: &str| -> Vec<(String, String)> {
        let b = p.bytes(file);
        let g = Gguf::parse(&b).unwrap();
        let of = ["token_embd", "blk.0.attn_v", "blk.1.attn_q", "blk.1.ffn_down", "blk.1.ffn_up", "output_norm"];
        of.map(|n| (n.to_owned(), g.tensor(&format!("{n}.weight")).unwrap().ty.to_string())).to_vec()
    };
    let all = |want: [&str; 6]| {
        let of = ["token_embd", "blk.0.attn_v", "blk.1.attn_q", "blk.1.ffn_down", "blk.1.ffn_up", "output_norm"];
        of.iter().zip(want).map(|(n, t)| ((*n).to_owned(), t.to_owned())).collect::<Vec<_>>()
    };
    for (kind, want) in [
        ("q8_0", ["Q8_0", "Q8_0", "Q8_0", "Q8_0", "Q8_0", "F32"]),
        ("q4_0", ["Q6_K", "Q4_0", "Q4_0", "Q4_0", "Q4_0", "F32"]),
        // The rows of ffn_down are no whole blocks of 256.
        ("q4_k", ["Q6_K", "Q4_K", "Q4_K", "Q8_0", "Q4_K", "F32"]),
        ("q6_k", ["Q6_K", "Q6_K", "Q6_K", "Q8_0", "Q6_K", "F32"]),
        ("q2_k", ["Q6_K", "Q3_K", "Q2_K", "Q4_0", "Q2_K", "F32"]),
        ("f16", ["F16", "F16", "F16", "F16", "F16", "F32"]),
    ] {
        let ran = p.run(&format!("quantize @/f32.gguf @/{kind}.gguf {kind}"));
        assert_eq!(ran.status, ExitStatus::Success, "{}", ran.stderr);
        assert_eq!(types(&format!("{kind}.gguf")), all(want), "{kind}");
    }
    // The metadata is the old one.
    let (old, new) = (p.bytes("f32.gguf"), p.bytes("q8_0.gguf"));
    let (old, new) = (Gguf::parse(&old).unwrap(), Gguf::parse(&new).unwrap());
    assert!(old.metadata().all(|(key, value)| new.get(key) == Some(value)));
    assert_eq!(new.u32("general.file_type").unwrap(), Some(7));
    let ran = p.run("quantize @/q4_0.gguf @/twice.gguf q8_0");
    assert!(ran.stderr.contains("it is Q6_K already"), "{}", ran.stderr);
    let ran = p.run("quantize @/f32.gguf @/x.gguf iq1_s");
    assert!(ran.status == ExitStatus::Usage && ran.stderr.contains("q5_k_m"), "{}", ran.stderr);
}
