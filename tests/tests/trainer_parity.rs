//! The trainer's differentiable decoder and the runtime give the same logits, with and without a module, on 500
//! tokens and more.

#![expect(clippy::print_stdout, reason = "a test that is skipped, or measures, says so")]

use candle_core::{Device, Tensor};
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::lora::{self, Scaling};
use conpet_formats::pet::{Lora, PetSpec};
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::tiny::{self, TinyArch, TinyConfig};
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::module::Module;
use conpet_runtime::prompt::Prompt;
use conpet_runtime::sampler::argmax;
use conpet_trainer::decoder::{Decoder, Training, WeightMode};
use conpet_trainer::nn::attention::Ragged;
use conpet_trainer::pet::TrainedModule;
use std::sync::Arc;

const TEXT: &str = "The number of people who write long letters has gone down each day, and 42 of them say that water, oil \
and words will be what we use when the list of files is full. What did you find in the house of the two men? ";

/// Varied values of about this size, rounded to f16.
fn wave(n: usize, phase: f32, size: f32) -> Vec<f32> {
    (0..n).map(|i| half::f16::from_f32(size * (i as f32 * 1.7 + phase).sin()).to_f32()).collect()
}

/// Factors on every linear above the trunk; `size` is large enough to change first choices.
fn adapters(engine: &Engine, trunk: usize, size: f32) -> TrainedModule {
    let spec = &engine.base.spec;
    let mut a = TrainedModule::none(PetSpec::lora(Lora { rank: 4, alpha: 4.0, scaling: Scaling::AlphaOverRank }));
    for l in trunk..spec.n_layer {
        for linear in spec.linears() {
            let (site, (out, input)) = (format!("blk.{l}.{}.weight", linear.name()), spec.shape(linear));
            let mut put = |name: String, v: Vec<f32>, s: (usize, usize)| {
                a.tensors.insert(name, Tensor::from_vec(v, s, &Device::Cpu).unwrap());
            };
            put(lora::a_name(&site), wave(4 * input, l as f32, 0.05), (4, input));
            put(lora::b_name(&site), wave(4 * out, 2.0 + l as f32, size), (out, 4));
        }
    }
    a
}

fn module(a: &TrainedModule, engine: &Engine) -> Module {
    let mut w = TensorsWriter::new();
    for (name, t) in &a.tensors {
        w.add_f16(name, t.dims(), &t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).unwrap();
    }
    let bytes = w.finish().unwrap();
    let sites: Vec<String> = a
        .tensors
        .keys()
        .filter_map(|n| lora::split_name(n))
        .filter(|(_, which)| *which == 0)
        .map(|(site, _)| site.into())
        .collect();
    let len = bytes.len();
    Module::load(Mapped::from_vec(bytes), 0..len, &sites, &a.pet, &engine.base.spec).unwrap()
}

/// (largest difference, largest logit, first choices that differ by more than rounding, tokens).
fn compare(engine: &Engine, trunk: usize, a: &TrainedModule, mode: WeightMode) -> (f32, f32, usize, usize) {
    let spec = &engine.base.spec;
    let blend = Blend::from((!a.tensors.is_empty()).then(|| Arc::new(module(a, engine))));
    let mut prompts: Vec<Arc<Prompt>> = Vec::new();
    let mut tokens = 0;
    while tokens < 500 {
        let p = engine.prompt(&format!("{}. {TEXT}", prompts.len() + 1), None).unwrap();
        tokens += p.tokens.len();
        prompts.push(Arc::new(p));
    }
    if !blend.is_none() {
        let choices =
            |b: &Blend| -> Vec<u32> { engine.logits(&prompts[0], b).chunks_exact(spec.vocab).map(argmax).collect() };
        assert_ne!(choices(&blend), choices(&Blend::none()), "the module says nothing");
    }
    let lens: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
    let decoder = Decoder::new(engine, trunk, mode);
    let states = engine.trunk(prompts.clone(), trunk, None, false).hidden;
    let x = Tensor::from_vec(states, (tokens, spec.hidden), &Device::Cpu).unwrap();
    let y = decoder.forward(&x, &Ragged::new(spec, &lens), a, &Training::default()).unwrap();
    let got =
        decoder.logits(&decoder.final_norm(&y).unwrap()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut got = got.chunks_exact(spec.vocab);
    let (mut diff, mut size, mut other) = (0f32, 0f32, 0);
    for p in &prompts {
        for want in engine.logits(p, &blend).chunks_exact(spec.vocab) {
            let got = got.next().unwrap();
            let d = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            (diff, size) = (diff.max(d), want.iter().fold(size, |m, v| m.max(v.abs())));
            let (g, w) = (argmax(got) as usize, argmax(want) as usize);
            // A tie within rounding does not count as a difference.
            other += usize::from(g != w && want[w] - want[g] > 2.0 * d);
        }
    }
    (diff, size, other, tokens)
}

fn check(mut engine: Engine, name: &str, trunk: usize, size: f32, tolerance: f32) {
    // The trainer computes in f32; the runtime rounds activations by default, which `tests/parity.rs` measures.
    engine = conpet_tests::exact(engine);
    let module = adapters(&engine, trunk, size);
    for (what, a) in [("bare", TrainedModule::none(module.pet.clone())), ("module", module)] {
        for mode in [WeightMode::Dense, WeightMode::Quant] {
            let (diff, size, other, n) = compare(&engine, trunk, &a, mode);
            println!(
                "{name}, {what}, {mode:?}: {n} tokens, largest difference {diff} of logits up to {size}, {other} first choices differ"
            );
            assert!(n >= 500 && other == 0, "{name}, {what}: {other} of {n} first choices differ");
            assert!(diff <= tolerance * size, "{name}, {what}: logits up to {size} differ by {diff}");
        }
    }
}

#[test]
fn tiny_base() {
    let dir = tempfile::tempdir().unwrap();
    // The same f32 sums in a different order, through at most four layers.
    check(conpet_tests::tiny_engine(dir.path()), "tiny", 1, 5.0, 1e-4);
}

/// Every family, in every form of layer that it has, with texts longer than the window.
#[test]
fn every_tiny_decoder() {
    let dir = tempfile::tempdir().unwrap();
    for arch in TinyArch::ALL.into_iter().filter(|a| a.is_decoder()) {
        let path = dir.path().join("base.gguf");
        // A Gemma 3 shows all its forms in six layers.
        let layers = if arch == TinyArch::Gemma3 { 7 } else { 4 };
        let config = TinyConfig { arch, layers, ..TinyConfig::default() };
        std::fs::write(&path, tiny::base(&config).unwrap()).unwrap();
        // As above; every layer multiplies what rounding has done before it.
        check(Engine::open(&path, 2).unwrap(), arch.name(), 1, 5.0, 1e-4);
    }
}

#[test]
fn gemma3() {
    let Some(path) = conpet_tests::real_gemma3() else {
        println!("skipped: no Gemma 3 base here (set CONPET_GEMMA3)");
        return;
    };
    // As above, through 12 layers.
    check(Engine::open(&path, 2).unwrap(), "Gemma 3", 6, 0.2, 1e-3);
}

#[test]
fn smollm2() {
    let Some(path) = conpet_tests::real_base() else {
        println!("skipped: no SmolLM2 base here (run examples/first-run.sh, or set CONPET_BASE)");
        return;
    };
    // As above, through 20 layers.
    check(Engine::open(&path, 2).unwrap(), "SmolLM2", 10, 0.2, 1e-3);
}
