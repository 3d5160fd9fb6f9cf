//! Hostile files that only the runtime can judge: token tables, types that cannot be run, modules that do
//! not fit their base. The others are in `formats/tests/hostile`.

use conpet_formats::bundle::{Bundle, Draft};
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::fingerprint::base_ref;
use conpet_formats::gguf::{Gguf, Writer};
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Lora, PetSpec, lora};
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_formats::{Code, Error};
use conpet_runtime::base::Base;
use conpet_runtime::chat::ChatTemplate;
use conpet_runtime::module::Module;
use conpet_runtime::skills::Skills;
use conpet_runtime::tokenizer::Tokenizer;
use std::path::Path;
use std::sync::Arc;

const HIDDEN: usize = 32;
const Q: &str = "blk.1.attn_q.weight";
const V: &str = "blk.1.attn_v.weight";

fn base() -> Vec<u8> {
    tiny::base(&TinyConfig { layers: 2, hidden: HIDDEN, heads: 2, kv_heads: 1, ffn: 32, ..TinyConfig::default() })
        .unwrap()
}

/// The base with bytes changed that lie `skip` behind the first `name`.
fn poked(name: &str, skip: usize, bytes: &[u8]) -> Vec<u8> {
    let mut out = base();
    let at = out.windows(name.len()).position(|w| w == name.as_bytes()).unwrap() + name.len() + skip;
    out[at..at + bytes.len()].copy_from_slice(bytes);
    out
}

fn refused<T: std::fmt::Debug>(got: Result<T, Error>, code: Code, what: &str) {
    match got {
        Err(e) => assert_eq!(e.code(), code, "{what}: {e}"),
        Ok(t) => panic!("{what}: accepted as {t:?}"),
    }
}

#[test]
fn g19_types_that_cannot_be_run_are_refused_on_use() {
    for ty in [4u32, 31, 40, 1 << 31] {
        // The last tensor: its length is then what is left of the file, whatever the type.
        let bytes = poked("output_norm.weight", 4 + 8, &ty.to_le_bytes());
        assert!(Gguf::parse(&bytes).is_ok(), "type {ty} is listed");
        refused(Base::from_map(Mapped::from_vec(bytes), Path::new("x.gguf")), Code::Type, &format!("type {ty}"));
    }
    let bytes = poked("output_norm.weight", 4 + 8, &40u32.to_le_bytes());
    let e = Base::from_map(Mapped::from_vec(bytes), Path::new("x.gguf")).unwrap_err();
    assert!(e.message().contains("NVFP4"), "{e}");
}

#[test]
fn a_tensor_that_nobody_reads_is_refused_by_name() {
    let config = TinyConfig { biases: true, ..TinyConfig::default() };
    let mut bytes = tiny::base(&config).unwrap();
    let load = |bytes: &[u8]| Base::from_map(Mapped::from_vec(bytes.to_vec()), Path::new("x.gguf"));
    assert!(load(&bytes).is_ok());
    // Without the first layer's, the family has no such bias.
    let at = bytes.windows(17).position(|w| w == b"blk.0.attn_k.bias").unwrap();
    bytes[at + 4] = b'9';
    let e = load(&bytes).unwrap_err();
    assert!(e.code() == Code::Unsupported && e.to_string().contains("tensor blk.9.attn_k.bias"), "{e}");
}

/// Token tables written by `f` over a good vocabulary of each kind of tokenizer.
fn tables(model: &str, f: impl FnOnce(&mut Tables)) -> Result<Tokenizer, Error> {
    let mut t = Tables {
        tokens: (0..=255u8).map(|b| format!("<0x{b:02X}>")).chain(["a", "b", "ab"].map(String::from)).collect(),
        merges: vec!["a b".into()],
        scores: vec![0.0; 259],
        kinds: vec![6; 256].into_iter().chain([1; 3]).collect(),
        special: 0,
    };
    f(&mut t);
    let mut w = Writer::new();
    w.str("tokenizer.ggml.model", model)
        .str("tokenizer.ggml.pre", "smollm")
        .strings("tokenizer.ggml.tokens", &t.tokens)
        .strings("tokenizer.ggml.merges", &t.merges)
        .f32s("tokenizer.ggml.scores", &t.scores)
        .i32s("tokenizer.ggml.token_type", &t.kinds);
    for key in ["bos", "eos", "unknown"] {
        w.u32(&format!("tokenizer.ggml.{key}_token_id"), t.special);
    }
    let mut bytes = Vec::new();
    w.finish(&mut bytes, |_| Ok(&[][..]))?;
    let map = Mapped::from_vec(bytes);
    Tokenizer::from_gguf(&Gguf::parse(&map)?, map.clone())
}

struct Tables {
    tokens: Vec<String>,
    merges: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<i32>,
    special: u32,
}

#[test]
fn g21_token_tables_are_hostile_too() {
    assert!(tables("llama", |_| ()).is_ok() && tables("gpt2", |_| ()).is_ok(), "the tables are good before");
    for spelling in ["<0x-1>", "<0xZZ>", "<0x>", "<0x100>", "<0x0", "0x00", "", "<0x+1>", "<0x\u{e9}>"] {
        refused(tables("llama", |t| t.tokens[7] = spelling.into()), Code::Value, spelling);
    }
    for merge in ["a c", "c a", "b a", "ab", "", " ", "a", "a  b", "\u{202e} \u{1b}"] {
        refused(tables("gpt2", |t| t.merges[0] = merge.into()), Code::Value, merge);
    }
    refused(tables("llama", |t| t.scores.truncate(258)), Code::Shape, "a score too few");
    refused(tables("gpt2", |t| t.kinds.truncate(258)), Code::Shape, "a kind too few");
    for id in [259, 1 << 31, u32::MAX] {
        refused(tables("gpt2", |t| t.special = id), Code::Value, "a special token that is none");
    }
    refused(tables("gpt3", |_| ()), Code::Unsupported, "another model");
    let cap = |n: usize| tables("gpt2", move |t| t.tokens[0] = "x".repeat(n));
    assert!(cap(64 << 10).is_ok());
    refused(cap((64 << 10) + 1), Code::Cap, "a token of 64 KiB + 1");
    refused(tables("gpt2", |t| (t.tokens, t.kinds, t.merges) = (vec![], vec![], vec![])), Code::Missing, "no tokens");
    // Scores that are no numbers order merges somehow, and every text still has its tokens.
    let t = tables("llama", |t| t.scores = vec![f32::NAN; 259]).unwrap();
    assert!(t.encode("abab ba", false).unwrap().iter().all(|id| *id < 259));
}

/// Loads a module of these tensors that declares these sites.
fn module(sites: &[&str], tensors: &[(String, [usize; 2])]) -> Result<Module, Error> {
    let bytes = base();
    let spec = ModelSpec::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap();
    let mut w = TensorsWriter::new();
    for (name, shape) in tensors {
        w.add_f16(name, shape, &vec![0.5; shape[0] * shape[1]]).unwrap();
    }
    let map = Mapped::from_vec(w.finish().unwrap());
    let pet = PetSpec::lora(Lora { rank: 8, alpha: 16.0, scaling: lora::Scaling::AlphaOverRank });
    let range = 0..map.len();
    Module::load(map, range, &sites.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>(), &pet, &spec)
}

fn a(site: &str, rank: usize) -> (String, [usize; 2]) {
    (lora::a_name(site), [rank, HIDDEN])
}

fn b(site: &str, out: usize, rank: usize) -> (String, [usize; 2]) {
    (lora::b_name(site), [out, rank])
}

#[test]
fn m19_factors_of_different_rank_are_refused() {
    assert!(module(&[Q], &[a(Q, 8), b(Q, HIDDEN, 8)]).is_ok());
    refused(module(&[Q], &[a(Q, 8), b(Q, HIDDEN, 16)]), Code::Shape, "A of rank 8, B of rank 16");
    refused(module(&[Q], &[a(Q, 16), b(Q, HIDDEN, 16)]), Code::Shape, "both of another rank than declared");
    refused(module(&[Q], &[a(Q, 8), b(Q, 2 * HIDDEN, 8)]), Code::Shape, "B of another base");
}

#[test]
fn m20_nothing_is_left_out_and_nothing_left_over() {
    let both = [a(Q, 8), b(Q, HIDDEN, 8)];
    refused(module(&[Q], &[&both[..], &[a(V, 8)]].concat()), Code::Layout, "a tensor of no declared site");
    refused(module(&[Q, V], &both), Code::Missing, "a site without tensors");
    refused(module(&[Q], &both[..1]), Code::Missing, "a site with half of them");
    refused(module(&["blk.2.attn_q.weight"], &both), Code::Missing, "a site of a layer that is not there");
    refused(module(&["blk.1.attn_x.weight"], &both), Code::Missing, "a site that is none");
    refused(module(&[Q, Q], &both), Code::Duplicate, "a site twice");
}

/// A bundle on the base, made of an empty draft with this trunk, and asked for in the runtime.
fn skills(trunk: u32, fill: impl FnOnce(Draft) -> Draft, ask: impl FnOnce(Result<Skills, Error>)) {
    let bytes = base();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("b.cpb");
    let reference = base_ref(&Gguf::parse(&bytes).unwrap()).unwrap();
    fill(Draft::new(reference, "dynamic", trunk)).create(&path).unwrap();
    let base = Arc::new(Base::from_map(Mapped::from_vec(bytes), Path::new("base.gguf")).unwrap());
    ask(Skills::new(Bundle::open(&path).unwrap(), &base));
}

#[test]
fn a_trunk_deeper_than_the_base_is_refused() {
    skills(3, |d| d, |s| refused(s, Code::Value, "a trunk of 3 of 2 layers"));
}

/// Its states are not computed for modules: they would be zeros.
#[test]
fn a_head_that_reads_below_the_trunk_is_refused() {
    for (layer, good) in [(0, false), (1, true), (2, true)] {
        let feature = FeatureSpec::single(layer, Pool::Mean, StateNorm::Output);
        let (weights, biases) = ([0.5; 2 * HIDDEN], [0.0; 2]);
        let task = |d| tiny::with_task(d, "one", &["no", "yes"], feature.clone(), &weights, &biases).unwrap();
        skills(1, task, |s| {
            let s = s.unwrap();
            let head = s.head(0).map(drop);
            if good { head.unwrap() } else { refused(head, Code::Value, "layer 0 of a trunk of 1") }
        });
    }
}

/// X02 for what a base brings along: a chat template is shown to a sandbox, and by its length at most.
#[test]
fn chat_templates_have_a_cap() {
    assert!(ChatTemplate::new(&"x".repeat(64 << 10)).is_ok());
    refused(ChatTemplate::new(&"x".repeat((64 << 10) + 1)), Code::Cap, "64 KiB + 1");
    refused(ChatTemplate::new(&"{% if x %}".repeat(5000)), Code::Value, "5000 blocks in each other");
}
