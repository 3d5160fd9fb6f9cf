//! The runtime against an implementation that shares none of its code: candle-transformers.

#![expect(clippy::print_stdout, reason = "a test that is skipped, or measures, says so")]

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use conpet_formats::quant::QuantType;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::kernels::Kernels;
use conpet_runtime::kv::KvType;
use conpet_runtime::sampler::argmax;
use conpet_runtime::session::Session;
use conpet_tests::token_by_token;
use std::path::Path;

const TEXT: &str = "It is a truth that the number of people who find the time to write a long letter has gone down each day. \
There are many who would like to see more of them, and some who say that water, oil and other things will be what we use when \
words are no more. What did you find in the house of the two men? I saw 42 people, one list of files, and a day that was long. ";

/// Logits `[tokens, vocab]` of the oracle, token by token.
fn oracle(path: &Path, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut file = std::fs::File::open(path).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let mut model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    tokens
        .iter()
        .enumerate()
        .map(|(i, t)| {
            let x = Tensor::new(&[[*t]], &Device::Cpu).unwrap();
            model.forward(&x, i).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        })
        .collect()
}

/// Largest difference relative to the largest logit, fraction of tokens with the same first choice, and number
/// of tokens.
fn compare(engine: &Engine, path: &Path, text: &str) -> (f32, f32, usize) {
    let p = engine.prompt(text, None).unwrap();
    let want = oracle(path, &p.tokens);
    let got = engine.logits(&p, &Blend::none());
    let (mut diff, mut size, mut same) = (0.0f32, 0.0f32, 0);
    for (g, w) in got.chunks_exact(engine.base.spec.vocab).zip(&want) {
        g.iter().zip(w).for_each(|(a, b)| diff = diff.max((a - b).abs()));
        size = w.iter().fold(size, |m, v| m.max(v.abs()));
        same += usize::from(argmax(g) == argmax(w));
    }
    (diff / size, same as f32 / want.len() as f32, want.len())
}

#[test]
fn logits_agree_with_candle_transformers() {
    let dir = tempfile::tempdir().unwrap();
    // candle multiplies quantized weights with activations rounded to 8 bits and the exact engine does not, so
    // float types are compared tightly and quantized ones within the size of that rounding.
    for (ty, tolerance) in
        [(QuantType::F32, 1e-4), (QuantType::F16, 2e-3), (QuantType::Q8_0, 0.03), (QuantType::Q4_1, 0.03)]
    {
        let path = dir.path().join(format!("{}.gguf", ty.name()));
        let bytes = tiny::base(&TinyConfig { linear: ty, embedding: QuantType::F32, ..TinyConfig::default() }).unwrap();
        std::fs::write(&path, bytes).unwrap();
        let engine = Engine::open(&path, 2).unwrap();
        let (diff, same, n) = compare(&engine, &path, TEXT);
        assert!(diff < tolerance, "{}: logits differ by {diff} of the largest over {n} tokens", ty.name());
        assert!(same > 0.97, "{}: only {same} of {n} first choices agree", ty.name());
    }
}

#[test]
fn batch_cache_and_kernels_agree_with_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = conpet_tests::tiny_engine(dir.path());
    let p = engine.prompt(TEXT, None).unwrap();
    engine = conpet_tests::exact(engine);
    let vocab = engine.base.spec.vocab;
    let whole = engine.logits(&p, &Blend::none());
    let close = |a: &[f32], b: &[f32], tolerance: f32, what: &str| {
        let d = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(d < tolerance, "{what}: logits differ by {d}");
    };
    // The same sums in a different order; logits of this base are about 10 in size.
    for (kv, tolerance) in [(KvType::F32, 2e-3), (KvType::F16, 5e-2)] {
        engine = engine.with_kv_type(kv);
        close(&token_by_token(&engine, 2, Blend::none(), &p), &whole, tolerance, &format!("token by token, {kv:?}"));
        engine = engine.with_batch(7);
        let mut session = Session::new(&engine, 1);
        let mut sequence = session.sequence(Blend::none());
        sequence.push(&p.tokens);
        session.run(&mut [&mut sequence]);
        close(sequence.logits(), &whole[whole.len() - vocab..], tolerance, &format!("in batches of 7, {kv:?}"));
    }
    for k in Kernels::all() {
        engine = engine.with_kernels(k.exact());
        close(&engine.logits(&p, &Blend::none()), &whole, 2e-3, k.name());
    }
    // With rounded activations, a difference in the last place of a sum can move a value to the next of 127
    // steps, so instruction sets differ by more than the rounding of sums, but by less than the rounding of
    // activations.
    engine = engine.with_kernels(Kernels::detect());
    let rounded = engine.logits(&p, &Blend::none());
    assert!(rounded != whole, "activations were not rounded");
    close(&rounded, &whole, 0.5, "rounded and not");
    for k in Kernels::all() {
        engine = engine.with_kernels(k);
        close(&engine.logits(&p, &Blend::none()), &rounded, 0.5, k.name());
    }
}

#[test]
fn a_cache_of_bytes_is_half_as_large_and_close() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    let config = TinyConfig { heads: 2, kv_heads: 1, ..TinyConfig::default() };
    std::fs::write(&path, tiny::base(&config).unwrap()).unwrap();
    let mut engine = Engine::open(&path, 2).unwrap();
    engine = conpet_tests::exact(engine);
    let p = engine.prompt(TEXT, None).unwrap();
    let (mut bytes, mut logits) = (Vec::new(), Vec::new());
    for ty in [KvType::F32, KvType::Q8_0] {
        assert!(ty.fits(engine.base.spec.head_dim));
        engine = engine.with_kv_type(ty);
        let mut session = Session::new(&engine, 2);
        let mut sequence = session.sequence(Blend::none());
        logits.push(session.all_logits(&mut sequence, &p));
        bytes.push(sequence.kv_bytes());
    }
    let d = logits[0].iter().zip(&logits[1]).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    // Keys and values are rounded to a part in 254 of the largest of 32; logits are about 10 in size.
    assert!(d > 0.0 && d < 0.5, "logits differ by {d}");
    assert_eq!(bytes[1] * 128, bytes[0] * 34, "34 bytes for 32 numbers");
    assert!(!KvType::Q8_0.fits(16), "heads of 16 are refused");
}

#[test]
fn smollm2_agrees_with_candle_transformers_on_500_tokens() {
    let Some(path) = conpet_tests::real_base() else {
        println!("skipped: no SmolLM2 base here (run examples/first-run.sh, or set CONPET_BASE)");
        return;
    };
    let mut engine = Engine::open(&path, 2).unwrap();
    let (diff, same, n) = compare(&engine, &path, &TEXT.repeat(6));
    println!(
        "SmolLM2: {n} tokens, largest logit difference {diff} of the largest logit, {same} of first choices equal"
    );
    assert!(n >= 500 && diff < 0.15 && same > 0.95, "{n} tokens, difference {diff}, same first choice {same}");
    let p = engine.prompt(&TEXT.repeat(6), None).unwrap();
    let rounded = engine.logits(&p, &Blend::none());
    engine = conpet_tests::exact(engine);
    let exact = engine.logits(&p, &Blend::none());
    let size = exact.iter().fold(0f32, |m, v| m.max(v.abs()));
    let diff = exact.iter().zip(&rounded).fold(0f32, |m, (a, b)| m.max((a - b).abs())) / size;
    let rows = exact.chunks_exact(engine.base.spec.vocab).zip(rounded.chunks_exact(engine.base.spec.vocab));
    let same = rows.filter(|(a, b)| argmax(a) == argmax(b)).count() as f32 / n as f32;
    println!(
        "rounding activations: largest logit difference {diff} of the largest logit, {same} of first choices equal"
    );
    assert!(diff < 0.15 && same > 0.95, "rounding costs {diff}, same first choice {same}");
}
