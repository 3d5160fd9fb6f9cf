//! What cannot be kept, and bases that are not the right one. Case ids are those of the threat model.

use crate::folder::{Folder, World};
use crate::{DOWN, K, Q};
use conpet_formats::exchange::{self, llama_lora, peft};
use conpet_formats::gguf::Writer;
use conpet_formats::quant::QuantType;
use conpet_formats::tiny::TinyConfig;
use conpet_formats::{Code, Error};
use serde_json::json;

fn error(f: &Folder, world: &World) -> Error {
    peft::read(&f.write(world), &world.spec, &world.base).unwrap_err()
}

/// The code, and words that the message or what it is said of must have.
fn refused(e: &Error, code: Code, words: &[&str]) {
    let text = e.to_string();
    assert!(e.code() == code && words.iter().all(|w| text.contains(w)), "wanted {code:?} {words:?}: {text}");
}

#[test]
fn settings_that_no_module_can_hold_are_named() {
    let world = World::llama();
    let unsupported = [
        ("use_dora", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("bias", json!("all")),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("layer_replication", json!([[0, 1], [0, 1]])),
        ("trainable_token_indices", json!([3])),
        ("target_parameters", json!(["mlp.experts"])),
        ("alora_invocation_tokens", json!([5, 6])),
        ("megatron_config", json!({"a": 1})),
        ("use_qalora", json!(true)),
        ("arrow_config", json!({"top_k": 3})),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("loftq")),
        ("layers_pattern", json!("h")),
        ("task_type", json!("SEQ_CLS")),
        ("peft_type", json!("OFT")),
        ("peft_type", json!(null)),
        ("a_setting_of_next_year", json!(1)),
    ];
    for (key, value) in unsupported {
        let mut f = Folder::lora(&world, &[(Q, 4)]);
        refused(&error(f.set(key, value.clone()), &world), Code::Unsupported, &[key]);
    }
    let wrong = [
        ("r", json!(0)),
        ("r", json!("8")),
        ("lora_alpha", json!(-1)),
        ("lora_alpha", json!(0)),
        ("use_rslora", json!("yes")),
        ("rank_pattern", json!({"q_proj": -4})),
        ("alpha_pattern", json!([1])),
        ("target_modules", json!({"q_proj": 1})),
        ("target_modules", json!([1])),
    ];
    for (key, value) in wrong {
        let mut f = Folder::lora(&world, &[(Q, 4)]);
        refused(&error(f.set(key, value.clone()), &world), Code::Value, &[key]);
    }
    let mut f = Folder::lora(&world, &[(Q, 4)]);
    f.set("alpha_pattern", json!({"layers.*.q_proj": 3}));
    refused(&error(&f, &world), Code::Unsupported, &["alpha_pattern", "layers.*.q_proj"]);
    f.set("alpha_pattern", json!({"q_proj": 3, "self_attn.q_proj": 4}));
    refused(&error(&f, &world), Code::Value, &["both 3", "and 4"]);
}

#[test]
fn caps_hold() {
    let world = World::llama();
    let mut f = Folder::lora(&world, &[(Q, 4)]);
    let names: Vec<String> = (0..8193).map(|i| format!("n{i}")).collect();
    refused(&error(f.set("target_modules", json!(names)), &world), Code::Cap, &["target_modules", "8193"]);
    let mut f = Folder::lora(&world, &[(Q, 4)]);
    let pattern: serde_json::Map<_, _> = names.iter().map(|n| (n.clone(), json!(1))).collect();
    refused(&error(f.set("rank_pattern", json!(pattern)), &world), Code::Cap, &["rank_pattern", "8193"]);
    let mut f = Folder::lora(&world, &[(Q, 4)]);
    f.set("base_model_name_or_path", json!("x".repeat(1 << 20)));
    refused(&error(&f, &world), Code::Cap, &["bytes of settings"]);
    // One site of rank 800 among others of rank 1: filling them up would be most of the module.
    let sites = [
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
        "mlp.up_proj",
    ];
    let names: Vec<String> = (0..8).flat_map(|l| sites.map(|s| format!("model.layers.{l}.{s}"))).collect();
    let ranks: Vec<(&str, usize)> =
        names.iter().enumerate().map(|(i, n)| (n.as_str(), if i == 0 { 800 } else { 1 })).collect();
    let deep = World::of(&TinyConfig { layers: 8, ..World::config() });
    let mut f = Folder::lora(&deep, &ranks);
    f.set("rank_pattern", json!({"model.layers.0.self_attn.q_proj": 800})).set("r", json!(1));
    refused(&error(&f, &deep), Code::Cap, &["largest rank, 800"]);
    let mut f = Folder::lora(&deep, &ranks[..3]);
    f.set("rank_pattern", json!({"model.layers.0.self_attn.q_proj": 800})).set("r", json!(1));
    peft::read(&f.write(&deep), &deep.spec, &deep.base).unwrap();
}

#[test]
fn settings_are_json_with_each_name_once() {
    let world = World::llama();
    let dir = Folder::lora(&world, &[(Q, 4)]).write(&world);
    for (text, word) in [
        (r#"{"peft_type":"LORA","r":4,"r":8}"#, "occurs twice"),
        ("[]", "JSON object"),
        ("{", "JSON"),
        (&format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)), "JSON"),
    ] {
        std::fs::write(dir.join(peft::CONFIG), text).unwrap();
        let e = peft::read(&dir, &world.spec, &world.base).unwrap_err();
        refused(&e, Code::Value, &[word, peft::CONFIG]);
    }
}

#[test]
fn tensors_that_belong_to_nothing_are_named() {
    let world = World::llama();
    for (name, shape, code) in [
        ("base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector", vec![32], Code::Unsupported),
        ("base_model.model.model.embed_tokens.lora_embedding_A", vec![4, 9], Code::Unsupported),
        ("base_model.model.lm_head.lora_A.weight", vec![4, 32], Code::Unsupported),
        ("base_model.model.score.weight", vec![2, 32], Code::Unsupported),
        ("base_model.model.model.layers.0.input_layernorm.lora_A.weight", vec![4, 32], Code::Unsupported),
        ("base_model.model.model.layers.1.self_attn.q_proj.lora_B.bias", vec![32], Code::Unsupported),
        ("base_model.model.model.layers.1.self_attn.q_proj.lora_A.other.weight", vec![4, 32], Code::Unsupported),
        ("base_model.model.model.layers.01.self_attn.q_proj.lora_A.weight", vec![4, 32], Code::Unsupported),
        ("model.layers.1.self_attn.q_proj.lora_A.weight", vec![4, 32], Code::Duplicate),
    ] {
        let mut f = Folder::lora(&world, &[(Q, 4)]);
        f.shapes.insert(name.into(), shape);
        let short = name.strip_prefix("base_model.model.").unwrap_or(name);
        let module = short.split(".lora_").next().unwrap();
        refused(&error(&f, &world), code, &[module]);
    }
}

#[test]
fn settings_and_tensors_must_agree() {
    let world = World::llama();
    let mut f = Folder::lora(&world, &[(Q, 4), (K, 4)]);
    f.shapes.retain(|n, _| !n.contains("k_proj"));
    refused(&error(&f, &world), Code::Missing, &[K]);
    let mut f = Folder::lora(&world, &[(Q, 4), (K, 4)]);
    f.shapes.retain(|n, _| !n.contains("k_proj.lora_B"));
    refused(&error(&f, &world), Code::Missing, &["blk.1.attn_k.weight", "B"]);
    let mut f = Folder::lora(&world, &[(Q, 4), (K, 4)]);
    refused(&error(f.set("target_modules", json!([Q])), &world), Code::Unsupported, &[K, "do not name"]);
    // q_proj alone means both layers.
    let mut f = Folder::lora(&world, &[(Q, 4)]);
    f.set("target_modules", json!(["q_proj"]));
    refused(&error(&f, &world), Code::Missing, &["model.layers.0.self_attn.q_proj"]);
    f.set("layers_to_transform", json!([1]));
    peft::read(&f.write(&world), &world.spec, &world.base).unwrap();
    f.set("layers_to_transform", json!(1)).set("exclude_modules", json!(["k_proj"]));
    peft::read(&f.write(&world), &world.spec, &world.base).unwrap();
    refused(&error(f.set("layers_to_transform", json!([2])), &world), Code::BaseMismatch, &["layers_to_transform"]);
    let mut f = Folder::lora(&world, &[(Q, 4)]);
    refused(&error(f.set("target_modules", json!([Q, "lm_head"])), &world), Code::Unsupported, &["lm_head"]);
    let mut f = Folder::lora(&world, &[(Q, 4)]);
    refused(&error(f.set("r", json!(8)), &world), Code::Value, &["rank 8", "have 4"]);
    // A regular expression is not run; then the tensors say what there is.
    let mut f = Folder::lora(&world, &[(Q, 4)]);
    peft::read(&f.set("target_modules", json!(".*q_proj")).write(&world), &world.spec, &world.base).unwrap();
}

#[test]
fn numbers_must_be_finite_and_of_a_known_type() {
    let world = World::llama();
    let dir = Folder::lora(&world, &[(Q, 4)]).write(&world);
    let path = dir.join(peft::MODEL);
    let good = std::fs::read(&path).unwrap();
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        peft::read(&dir, &world.spec, &world.base).unwrap_err()
    };
    let mut nan = good.clone();
    let end = nan.len();
    nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    refused(&read(&nan), Code::NotFinite, &["lora_"]);
    let text = String::from_utf8_lossy(&good[8..400]).into_owned();
    let at = 8 + text.find("\"F32\"").unwrap();
    let mut other = good.clone();
    other[at..at + 5].copy_from_slice(b"\"I32\"");
    refused(&read(&other), Code::Type, &["I32"]);
    for n in (0..good.len()).step_by(61) {
        // Every prefix is refused, and none makes the reader fall.
        read(&good[..n]);
    }
    let mut long = good;
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&read(&long), Code::Cap, &["header"]);
}

#[test]
fn x01_pickle_is_refused_by_name_and_by_magic() {
    let world = World::llama();
    let dir = Folder::lora(&world, &[(Q, 4)]).write(&world);
    let model = dir.join(peft::MODEL);
    let good = std::fs::read(&model).unwrap();
    for (bytes, what) in [
        (&b"PK\x03\x04aaaaaaaaaa"[..], "ZIP"),
        (b"\x80\x02}q\x00(X\x06\x00\x00\x00", "pickle"),
        (b"\x80\x05\x95\x10\x00\x00\x00\x00\x00", "pickle"),
    ] {
        std::fs::write(&model, bytes).unwrap();
        refused(&peft::read(&dir, &world.spec, &world.base).unwrap_err(), Code::Unsupported, &[what, "safetensors"]);
        refused(&llama_lora::read(bytes, &world.spec, &world.base).unwrap_err(), Code::Unsupported, &[what]);
        for name in ["x.gguf", "x.safetensors"] {
            std::fs::write(world.path(name), bytes).unwrap();
            refused(&exchange::detect(&world.path(name)).unwrap_err(), Code::Unsupported, &[what]);
        }
    }
    std::fs::remove_file(&model).unwrap();
    for name in ["adapter_model.bin", "adapter_model.pt", "pytorch_model.bin"] {
        std::fs::write(dir.join(name), &good).unwrap();
        refused(&peft::read(&dir, &world.spec, &world.base).unwrap_err(), Code::Unsupported, &[name, "pickle"]);
        refused(&exchange::detect(&dir.join(name)).unwrap_err(), Code::Unsupported, &[name, "pickle"]);
        std::fs::remove_file(dir.join(name)).unwrap();
    }
    refused(&peft::read(&dir, &world.spec, &world.base).unwrap_err(), Code::Io, &[peft::MODEL]);
    for name in ["x.ckpt", "x.PTH", "x.pkl"] {
        std::fs::write(world.path(name), b"anything").unwrap();
        refused(&exchange::detect(&world.path(name)).unwrap_err(), Code::Unsupported, &["pickle"]);
    }
    // A header of 640 bytes begins like a pickle, and is none.
    let mut f = Folder::lora(&world, &[(Q, 4)]);
    f.metadata.insert("fill".into(), String::new());
    let header = |f: &Folder| {
        let b = std::fs::read(f.write(&world).join(peft::MODEL)).unwrap();
        u64::from_le_bytes(*b.first_chunk().unwrap()) as usize
    };
    let fill = 640 - header(&f);
    f.metadata.insert("fill".into(), "x".repeat(fill));
    assert_eq!(header(&f), 640);
    peft::read(&f.write(&world), &world.spec, &world.base).unwrap();
}

#[test]
fn x10_another_architecture_or_size_is_refused() {
    let world = World::llama();
    let adapter = Folder::lora(&world, &[(Q, 4), (DOWN, 4)]);
    let dir = adapter.write(&world);
    let gguf = world.gguf(&peft::read(&dir, &world.spec, &world.base).unwrap());
    let gemma = World::gemma();
    refused(&llama_lora::read(&gguf, &gemma.spec, &gemma.base).unwrap_err(), Code::BaseMismatch, &["architecture"]);
    let mut f = Folder::lora(&gemma, &[(Q, 4)]);
    f.set("auto_mapping", json!({"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}));
    refused(&error(&f, &gemma), Code::BaseMismatch, &["LlamaForCausalLM", "gemma3"]);
    for c in [TinyConfig { hidden: 64, ..World::config() }, TinyConfig { ffn: 128, ..World::config() }] {
        let other = World::of(&c);
        refused(&peft::read(&dir, &other.spec, &other.base).unwrap_err(), Code::BaseMismatch, &["shape"]);
    }
    let shallow = World::of(&TinyConfig { layers: 1, ..World::config() });
    // Known to be another base by its fingerprint before anything else is looked at.
    refused(&llama_lora::read(&gguf, &shallow.spec, &shallow.base).unwrap_err(), Code::BaseMismatch, &["structure"]);
    let mut f = Folder::lora(&world, &[(Q, 4)]);
    f.set("target_modules", json!(".*q_proj"));
    refused(&error(&f, &shallow), Code::BaseMismatch, &["layer 1", "1 layers"]);
}

#[test]
fn x11_x12_x13_what_was_exported_is_refused_on_other_weights_quants_and_tokenizers() {
    let world = World::llama();
    let p = peft::read(&Folder::lora(&world, &[(Q, 4)]).write(&world), &world.spec, &world.base).unwrap();
    assert!(p.notes.iter().any(|n| n.contains("does not say which weights")), "PEFT's own files cannot say");
    let (dir, gguf) = (world.path("out"), world.gguf(&p));
    peft::write(&dir, &p, &world.spec, &world.base, None).unwrap();
    let back = peft::read(&dir, &world.spec, &world.base).unwrap();
    assert!(back.notes.is_empty(), "{:?}", back.notes);
    let mut tokenizer = world.base.clone();
    tokenizer.tokenizer = "0".repeat(64);
    let weights = World::of(&TinyConfig { seed: 2, ..World::config() });
    let quant = World::of(&TinyConfig { linear: QuantType::F16, ..World::config() });
    for (base, part) in [(&weights.base, "sample"), (&quant.base, "structure"), (&tokenizer, "tokenizer")] {
        refused(&peft::read(&dir, &world.spec, base).unwrap_err(), Code::BaseMismatch, &[part]);
        refused(&llama_lora::read(&gguf, &world.spec, base).unwrap_err(), Code::BaseMismatch, &[part]);
    }
}

#[test]
fn x14_rows_are_never_taken_in_an_unknown_order() {
    // A llama whose heads turn in part: its converters do not agree on the order of q and k.
    let mut world = World::llama();
    world.spec.ropes[0].dim /= 2;
    refused(&error(&Folder::lora(&world, &[(Q, 4)]), &world), Code::Unsupported, &["q and k"]);
    peft::read(&Folder::lora(&world, &[(DOWN, 4)]).write(&world), &world.spec, &world.base).unwrap();
}

#[test]
fn ia3_prompt_and_prefix_are_held_to_the_base_too() {
    let world = World::llama();
    let mut f = Folder::ia3(&world);
    f.shapes.insert(format!("base_model.model.{DOWN}.ia3_l"), vec![32, 1]);
    refused(&error(&f, &world), Code::Unsupported, &["down_proj", "feedforward_modules"]);
    let mut f = Folder::ia3(&world);
    f.shapes.insert(format!("base_model.model.{K}.ia3_l"), vec![17, 1]);
    refused(&error(&f, &world), Code::BaseMismatch, &["k_proj"]);
    let mut f = Folder::prompt(&world, 5);
    f.shapes.insert("prompt_embeddings".into(), vec![5, 33]);
    refused(&error(&f, &world), Code::BaseMismatch, &["prompt_embeddings"]);
    let mut f = Folder::prompt(&world, 5);
    refused(&error(f.set("num_virtual_tokens", json!(6)), &world), Code::Value, &["num_virtual_tokens"]);
    let mut f = Folder::prompt(&world, 5);
    f.shapes.insert("base_model.model.x".into(), vec![1]);
    refused(&error(&f, &world), Code::Unsupported, &["x"]);
    let gemma = World::gemma();
    for f in [Folder::prefix(&gemma, 3), Folder::prompt(&gemma, 3)] {
        refused(&error(&f, &gemma), Code::Unsupported, &["windows of 24"]);
    }
    refused(
        &error(&Folder::prefix(&World::of(&TinyConfig { layers: 3, ..World::config() }), 3), &world),
        Code::BaseMismatch,
        &["prompt_embeddings"],
    );
}

/// A LoRA file as llama.cpp's converter writes it, with one thing changed.
fn lora_file(spoil: impl FnOnce(&mut Writer, &mut Vec<(String, [u64; 2])>)) -> Vec<u8> {
    let mut w = Writer::new();
    let site = "blk.1.attn_q.weight";
    let mut tensors = vec![(format!("{site}.lora_a"), [32, 4]), (format!("{site}.lora_b"), [4, 32])];
    spoil(&mut w, &mut tensors);
    tensors.iter().for_each(|(n, ne)| {
        w.tensor(n, QuantType::F16, ne);
    });
    let mut out = Vec::new();
    w.finish(&mut out, |i| Ok(vec![0x11; (tensors[i].1[0] * tensors[i].1[1] * 2) as usize])).unwrap();
    out
}

fn head(w: &mut Writer, ty: &str, adapter: &str) {
    w.str("general.type", ty).str("general.architecture", "llama").str("adapter.type", adapter);
}

#[test]
fn llama_lora_files_keep_everything_or_are_refused() {
    let world = World::llama();
    let read = |bytes: &[u8]| llama_lora::read(bytes, &world.spec, &world.base);
    let p = read(&lora_file(|w, _| head(w, "adapter", "lora"))).unwrap();
    assert_eq!(crate::lora(&p).scale(), 1.0, "no alpha is a scale of 1");
    let p = read(&lora_file(|w, _| {
        head(w, "adapter", "lora");
        w.f32("adapter.lora.alpha", 0.1).str("adapter.lora.task_name", "t").str("adapter.lora.prompt_prefix", "Say:");
    }))
    .unwrap();
    assert_eq!((crate::lora(&p).alpha, crate::lora(&p).rank), (0.1, 4));
    assert!(p.notes.iter().any(|n| n.contains("Say:")), "{:?}", p.notes);
    let refuse = |spoil: &mut dyn FnMut(&mut Writer, &mut Vec<(String, [u64; 2])>), code, words: &[&str]| {
        refused(&read(&lora_file(|w, t| spoil(w, t))).unwrap_err(), code, words);
    };
    refuse(&mut |w, _| head(w, "model", "lora"), Code::Unsupported, &["general.type"]);
    refuse(&mut |w, _| head(w, "adapter", "control"), Code::Unsupported, &["adapter.type"]);
    refuse(&mut |_, _| {}, Code::Unsupported, &["general.type", "absent"]);
    let tokens = |w: &mut Writer| {
        head(w, "adapter", "lora");
        w.i32s("adapter.alora.invocation_tokens", &[1]);
    };
    refuse(&mut |w, _| tokens(w), Code::Unsupported, &["adapter.alora.invocation_tokens"]);
    let alpha = |w: &mut Writer| {
        head(w, "adapter", "lora");
        w.f32("adapter.lora.alpha", f32::NAN);
    };
    refuse(&mut |w, _| alpha(w), Code::Value, &["adapter.lora.alpha"]);
    for (name, ne, code, word) in [
        ("blk.0.attn_norm.weight", [32, 1], Code::Unsupported, "attn_norm"),
        ("token_embd.weight.lora_a", [4, 9], Code::Unsupported, "token_embd"),
        ("blk.0.attn_norm.weight.lora_a", [32, 4], Code::Unsupported, "attn_norm"),
        ("output.weight.lora_a", [32, 4], Code::Missing, "output"),
        ("blk.7.attn_q.weight.lora_a", [32, 4], Code::BaseMismatch, "blk.7"),
        ("blk.0.attn_k.weight.lora_a", [32, 4], Code::Missing, "has no B"),
    ] {
        let mut more = |w: &mut Writer, t: &mut Vec<(String, [u64; 2])>| {
            head(w, "adapter", "lora");
            t.push((name.into(), ne));
        };
        refuse(&mut more, code, &[word]);
    }
    let mut wide = |w: &mut Writer, t: &mut Vec<(String, [u64; 2])>| {
        head(w, "adapter", "lora");
        t[0].1 = [64, 4];
    };
    refuse(&mut wide, Code::BaseMismatch, &["blk.1.attn_q.weight"]);
    let mut ranks = |w: &mut Writer, t: &mut Vec<(String, [u64; 2])>| {
        head(w, "adapter", "lora");
        t[1].1 = [5, 32];
    };
    refuse(&mut ranks, Code::Shape, &["ranks"]);
    let ia3 = peft::read(&Folder::ia3(&world).write(&world), &world.spec, &world.base).unwrap();
    let e = llama_lora::write(&mut Vec::new(), &ia3, &world.spec, &world.base, "t").unwrap_err();
    refused(&e, Code::Unsupported, &["ia3", "LoRA only"]);
}
