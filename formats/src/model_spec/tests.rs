//! Nothing of a file is passed over: keys and tensors are read, known to change nothing, or refused by name.

use super::*;
use crate::gguf::Writer;
use crate::quant::QuantType;

/// The bytes of a llama without its layers' tensors, and what `more` adds.
fn llama(more: impl FnOnce(&mut Writer) -> &mut Writer) -> Vec<u8> {
    let mut w = Writer::new();
    w.str("general.architecture", "llama")
        .u32("llama.block_count", 2)
        .u32("llama.context_length", 8)
        .u32("llama.embedding_length", 16)
        .u32("llama.feed_forward_length", 24)
        .u32("llama.attention.head_count", 4)
        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    more(&mut w);
    w.tensor("token_embd.weight", QuantType::F32, &[16, 4]);
    let mut out = Vec::new();
    w.finish(&mut out, |_| Ok(vec![0; 256])).unwrap();
    out
}

fn read(more: impl FnOnce(&mut Writer) -> &mut Writer) -> Result<ModelSpec> {
    let bytes = llama(more);
    ModelSpec::from_gguf(&Gguf::parse(&bytes)?)
}

#[track_caller]
fn refused(got: Result<ModelSpec>, code: Code, names: &str) {
    let e = got.unwrap_err();
    assert!(e.code() == code && e.to_string().contains(names), "{names}: {e}");
}

#[test]
fn a_key_that_may_change_something_is_refused_by_name() {
    for (key, value) in [
        ("rope.scaling.factor", 8.0),
        ("rope.scale_linear", 4.0),
        ("rope.scaling.attn_factor", 0.5),
        ("attention.scale", 0.1),
        ("logit_scale", 16.0),
    ] {
        let key = format!("llama.{key}");
        refused(read(|w| w.f32(&key, value)), Code::Unsupported, &key);
    }
    refused(read(|w| w.bool("llama.attention.causal", false)), Code::Unsupported, "llama.attention.causal");
    refused(read(|w| w.u32("llama.expert_count", 8)), Code::Unsupported, "llama.expert_count");
    refused(read(|w| w.u32("llama.attention.value_length", 8)), Code::Unsupported, "value_length");
    refused(read(|w| w.str("llama.rope.scaling.type", "yarn")), Code::Unsupported, "yarn");
}

#[test]
fn a_key_that_changes_nothing_is_not() {
    let bare = read(|w| w).unwrap();
    let same = |more: fn(&mut Writer) -> &mut Writer| assert_eq!(read(more).unwrap(), bare);
    same(|w| w.u32("llama.vocab_size", 4).str("llama.tensor_data_layout", "Meta AI original pth"));
    same(|w| w.f32("llama.rope.scaling.factor", 1.0).f32("llama.rope.scale_linear", 0.0));
    // A factor without effect, as llama.cpp reads it.
    same(|w| w.str("llama.rope.scaling.type", "none").f32("llama.rope.scaling.factor", 8.0));
    same(|w| w.bool("llama.attention.causal", true).u32("llama.expert_count", 0));
    same(|w| w.str("general.note", "anything").u32("quantize.imatrix.chunks_count", 7).u32("split.count", 1));
}

#[test]
fn heads_may_be_given_by_layer_if_all_are_the_same() {
    let heads = |n: &'static [i32]| read(move |w| w.i32s("llama.attention.head_count_kv", n));
    assert_eq!(heads(&[2, 2]).unwrap().n_kv_head, 2);
    refused(heads(&[2, 4]), Code::Unsupported, "llama.attention.head_count_kv");
    refused(heads(&[2]), Code::Type, "an array of 1 for 2 layers");
    refused(heads(&[-2, -2]), Code::Value, "llama.attention.head_count_kv");
}

#[test]
fn a_tensor_that_nobody_reads_is_refused_by_name() {
    let with = |name: &str| {
        let bytes = llama(|w| w.tensor(name, QuantType::F32, &[64]));
        let g = Gguf::parse(&bytes).unwrap();
        ModelSpec::from_gguf(&g).unwrap().check_tensors(&g)
    };
    for known in ["blk.1.ffn_norm.weight", "blk.0.attn_q.bias", "output_norm.weight", "output.weight"] {
        with(known).unwrap();
    }
    for unknown in ["blk.0.ffn_up.bias", "blk.1.attn_q.bias", "blk.2.attn_q.weight", "output.bias", "rope_freqs.weight"]
    {
        let e = with(unknown).unwrap_err();
        assert!(e.code() == Code::Unsupported && e.to_string().contains(unknown), "{unknown}: {e}");
    }
}

#[test]
fn the_hint_of_an_unknown_architecture_lists_every_family() {
    let mut bytes = llama(|w| w);
    let at = bytes.windows(5).position(|w| w == b"llama").unwrap();
    bytes[at..at + 5].copy_from_slice(b"lhama");
    let e = ModelSpec::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap_err();
    let hint = e.to_string();
    assert!(FAMILIES.iter().all(|f| hint.contains(f.arch)), "{hint}");
}

#[test]
fn a_layer_of_gemma3_sees_a_window_and_turns_as_its_place_says() {
    use crate::tiny::{TinyArch, TinyConfig, base};
    let bytes = base(&TinyConfig { arch: TinyArch::Gemma3, layers: 12, ..TinyConfig::default() }).unwrap();
    let g = Gguf::parse(&bytes).unwrap();
    let s = ModelSpec::from_gguf(&g).unwrap();
    s.check_tensors(&g).unwrap();
    for l in 0..12 {
        let everything = l == 5 || l == 11;
        assert_eq!(s.attention(l).window, (!everything).then_some(24), "layer {l}");
        assert_eq!(s.rope(l).base, if everything { 1e6 } else { 1e4 }, "layer {l}");
    }
}
