//! Nothing of a file is passed over: keys and tensors are read, known to change nothing, or refused by name.

use super::*;
use crate::gguf::{TensorType, Writer};
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
        ("rope.scaling.yarn_log_multiplier", 0.5),
        ("rope.scaling.yarn_ext_factor", 0.5),
        ("attention.scale", 0.1),
        ("logit_scale", 16.0),
    ] {
        let key = format!("llama.{key}");
        refused(read(|w| w.f32(&key, value)), Code::Unsupported, &key);
    }
    refused(read(|w| w.bool("llama.attention.causal", false)), Code::Unsupported, "llama.attention.causal");
    refused(read(|w| w.u32("llama.expert_count", 8)), Code::Unsupported, "llama.expert_count");
    refused(read(|w| w.u32("llama.attention.value_length", 8)), Code::Unsupported, "value_length");
    refused(read(|w| w.str("llama.rope.scaling.type", "dynamic")), Code::Unsupported, "dynamic");
    refused(read(|w| w.f32("llama.rope.scaling.factor", 0.5)), Code::Value, "llama.rope.scaling.factor");
}

#[test]
fn a_stretched_rotary_embedding_is_read_whatever_it_is_called() {
    let plain = Rope::new(RopeKind::Adjacent, 10_000.0, 4);
    let rope = |more: fn(&mut Writer) -> &mut Writer| read(more).unwrap().ropes.remove(0);
    assert_eq!(rope(|w| w.f32("llama.rope.scaling.factor", 8.0)), plain.clone().slowed(8.0));
    assert_eq!(rope(|w| w.f32("llama.rope.scale_linear", 4.0)), plain.clone().slowed(4.0));
    assert_eq!(rope(|w| w.f32("llama.rope.scaling.attn_factor", 0.5)), plain.clone().grown(0.5));
    let yarn = rope(|w| w.str("llama.rope.scaling.type", "yarn").f32("llama.rope.scaling.factor", 4.0));
    // The original context is the context, unless the file says otherwise.
    let want = rope::Yarn { factor: 4.0, original: 8, beta_fast: 32.0, beta_slow: 1.0 };
    assert_eq!(yarn, plain.yarn(want));
}

#[test]
fn a_longer_context_takes_the_other_factors_of_phi3() {
    use crate::tiny::{Stretch, TinyArch, TinyConfig, base};
    let config = TinyConfig { arch: TinyArch::Phi3, stretch: Stretch::Factors, ..TinyConfig::default() };
    let bytes = base(&config).unwrap();
    let spec = ModelSpec::from_gguf(&Gguf::parse(&bytes).unwrap()).unwrap();
    let plain = Rope::new(RopeKind::Halves, 10_000.0, 16);
    let by = |step: f32| plain.clone().slowed_by(&std::array::from_fn::<_, 8, _>(|i| 1.0 + step * i as f32));
    assert_eq!((spec.context, &spec.ropes), (256, &vec![by(1.0)]));
    assert_eq!(spec.clone().for_context(256), spec);
    let longer = spec.clone().for_context(257);
    assert_eq!((longer.context, longer.ropes, longer.longer), (512, vec![by(3.0)], None));
    assert_eq!(spec.clone().for_context(513), spec, "there are no factors for that");
}

/// The bytes of a file with a key or a tensor more.
fn with_more(good: &Gguf<'_>, key: Option<&str>, tensor: Option<&str>) -> Vec<u8> {
    let mut w = Writer::new();
    good.metadata().for_each(|(k, v)| {
        w.value(k, v);
    });
    key.into_iter().for_each(|k| {
        w.f32(k, 1.0);
    });
    for t in good.tensors() {
        let TensorType::Known(ty) = t.ty else { unreachable!() };
        w.tensor(t.name, ty, &t.ne[..t.n_dims]);
    }
    tensor.into_iter().for_each(|t| {
        w.tensor(t, QuantType::F32, &[8]);
    });
    let mut out = Vec::new();
    let data = |i: usize| Ok(good.tensors().get(i).map_or(vec![0; 32], |t| good.data(t).to_vec()));
    w.finish(&mut out, data).unwrap();
    out
}

#[test]
fn a_bert_that_turns_its_heads_is_refused() {
    use crate::tiny::{TinyArch, TinyConfig, base};
    let bytes = base(&TinyConfig { arch: TinyArch::Bert, ..TinyConfig::default() }).unwrap();
    let out = with_more(&Gguf::parse(&bytes).unwrap(), Some("bert.rope.freq_base"), None);
    refused(ModelSpec::from_gguf(&Gguf::parse(&out).unwrap()), Code::Unsupported, "bert.rope.freq_base");
}

/// Whatever family a file is of, a key or a tensor that it does not know is never passed over.
#[test]
fn an_extra_key_or_tensor_is_refused_by_name_in_every_family() {
    use crate::tiny::{TinyArch, TinyConfig, base};
    use rand::{Rng, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(5);
    let mut letters = |n: usize| -> String { (0..n).map(|_| char::from(b'a' + (rng.next_u32() % 26) as u8)).collect() };
    for arch in TinyArch::ALL {
        let bytes = base(&TinyConfig { arch, ..TinyConfig::default() }).unwrap();
        let good = Gguf::parse(&bytes).unwrap();
        let spec = ModelSpec::from_gguf(&good).unwrap();
        spec.check_tensors(&good).unwrap();
        assert_eq!((spec.causal, spec.arch.as_str()), (arch.is_decoder(), arch.name()));
        for i in 0..40 {
            let word = letters(3 + i % 5);
            let stems = ["", "attention.", "rope.", "rope.scaling.", "ssm.", "expert_"];
            let key = format!("{}.{}{word}", arch.name(), stems[i % stems.len()]);
            let stems = ["", "blk.0.", "blk.1.attn_q.", "blk.0.ffn_up.", "output.", "token_embd."];
            let tensor = format!("{}{word}", stems[i / 2 % stems.len()]);
            let as_key = i % 2 == 0;
            let out = with_more(&good, as_key.then_some(&key), (!as_key).then_some(&tensor));
            let g = Gguf::parse(&out).unwrap();
            let got = ModelSpec::from_gguf(&g).and_then(|s| s.check_tensors(&g).map(|()| s));
            refused(got, Code::Unsupported, if as_key { &key } else { &tensor });
        }
    }
}

#[test]
fn a_key_that_changes_nothing_is_not() {
    let bare = read(|w| w).unwrap();
    let same = |more: fn(&mut Writer) -> &mut Writer| assert_eq!(read(more).unwrap(), bare);
    same(|w| w.u32("llama.vocab_size", 4).str("llama.tensor_data_layout", "Meta AI original pth"));
    same(|w| w.f32("llama.rope.scaling.factor", 1.0).f32("llama.rope.scale_linear", 0.0));
    same(|w| w.f32("llama.rope.scaling.yarn_beta_fast", 16.0).u32("llama.pooling_type", 3));
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
    for known in ["blk.1.ffn_norm.weight", "blk.0.attn_q.bias", "blk.0.ffn_up.bias", "output_norm.weight"] {
        with(known).unwrap();
    }
    for unknown in ["blk.0.attn_norm.bias", "blk.1.attn_q.bias", "blk.2.attn_q.weight", "output.bias"] {
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
        assert_eq!(s.rope(l).unwrap().base, if everything { 1e6 } else { 1e4 }, "layer {l}");
    }
}
