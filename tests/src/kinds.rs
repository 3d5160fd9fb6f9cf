//! Modules of every PET kind on a base of every family, with varied parameters.

#![expect(clippy::missing_panics_doc, reason = "helpers of tests panic where a test would")]

use crate::exact;
use crate::reference::Plain;
use candle_core::{Device, Tensor};
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Lora, PetSpec, Places, Site};
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::tiny::{self, Stretch, TinyArch, TinyConfig};
use conpet_runtime::base::Base;
use conpet_runtime::batch::Span;
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::module::Module;
use conpet_runtime::prompt::Prompt;
use conpet_trainer::decoder::Decoder;
use conpet_trainer::pet::{self, TrainedModule};
use std::path::Path;
use std::sync::Arc;

/// Parses a PET spec.
pub fn parse(text: &str) -> PetSpec {
    PetSpec::parse(text, Lora::default(), Places::LINEARS).unwrap()
}

/// The deepest trunk that a module allows here: all but two layers, or none.
pub fn trunk(spec: &ModelSpec, pet: &PetSpec) -> usize {
    if pet.acts_on_input() { 0 } else { spec.n_layer - 2 }
}

/// A base of each family, in each of its variants. The last layer of a Gemma has full attention, the one before
/// it a window shorter than the sequences here.
pub fn families() -> Vec<(&'static str, TinyConfig)> {
    let of = |arch| TinyConfig {
        arch,
        layers: if arch == TinyArch::Gemma3 { 6 } else { 4 },
        window: 2,
        ..TinyConfig::default()
    };
    let llama = of(TinyArch::Llama);
    let stretched = |stretch| TinyConfig { stretch, ..llama.clone() };
    let variants = [
        ("llama with biases", TinyConfig { biases: true, ..llama.clone() }),
        ("llama, slowed", stretched(Stretch::Linear)),
        ("llama, YaRN", stretched(Stretch::Yarn)),
        ("llama 3", stretched(Stretch::Factors)),
        ("phi3, LongRoPE", TinyConfig { stretch: Stretch::Factors, ..of(TinyArch::Phi3) }),
    ];
    TinyArch::ALL.into_iter().map(|arch| (arch.name(), of(arch))).chain(variants).collect()
}

/// Whether all kinds and forms are tried on a family, alone and together; the others try them together.
pub fn in_full(family: &str) -> bool {
    ["llama", "gemma3", "bert"].contains(&family)
}

/// Whether a base can have such a module.
pub fn possible(spec: &ModelSpec, pet: &PetSpec) -> bool {
    pet.sites(spec, trunk(spec, pet)).is_ok()
}

/// What a base gives for each of a prompt's tokens: logits, or the last states of an encoder.
pub fn output(engine: &Engine, prompt: &Prompt, blend: &Blend) -> Vec<f32> {
    if engine.base.spec.causal {
        return engine.logits(prompt, blend);
    }
    let mut hidden = Vec::new();
    engine.embed(prompt.placed(), &mut hidden);
    let spans = &mut [Span::once(prompt.tokens.len(), blend)];
    engine.device().layers(0..engine.base.spec.n_layer, spans, &mut hidden, &mut |_, _| {});
    hidden
}

/// The same of states after the last layer in training.
pub fn trained_output(decoder: &Decoder, states: &Tensor) -> Tensor {
    let states = decoder.final_norm(states).unwrap();
    if decoder.spec.causal { decoder.logits(&states).unwrap() } else { states }
}

/// An engine on a tiny base, with activations kept in `f32`.
pub fn engine_of(config: &TinyConfig) -> Engine {
    let map = Mapped::from_vec(tiny::base(config).unwrap());
    exact(Engine::new(Arc::new(Base::from_map(map, Path::new("tiny.gguf")).unwrap()), 2))
}

/// A module with varied parameters, and its sites.
pub fn uneven(engine: &Engine, pet: &PetSpec) -> (TrainedModule, Vec<String>) {
    let base = &engine.base;
    let names = pet.sites(&base.spec, trunk(&base.spec, pet)).unwrap();
    let sites: Vec<Site> = names.iter().map(|s| Site::parse(&base.spec, s).unwrap()).collect();
    let indices = pet::choose(base, pet, &sites, (1, "t"), &|_, _| Ok(())).unwrap();
    let mut module = TrainedModule::none(pet.clone());
    for (i, x) in pet::fresh(base, pet, &sites, &indices, (1, "t"), |_| false).into_iter().enumerate() {
        let value = |j: usize| ((j as f32 * 1.3 + i as f32).sin() + (j % 3) as f32 * 0.2) * 0.16;
        let values: Vec<f32> = (0..x.values.len()).map(value).collect();
        module.tensors.insert(x.name, Tensor::from_vec(values, x.shape, &Device::Cpu).unwrap());
    }
    (TrainedModule { indices, ..module }, names)
}

/// The module as the runtime loads it.
pub fn loaded(engine: &Engine, module: &TrainedModule, sites: &[String]) -> Module {
    let mut w = TensorsWriter::new();
    module.tensors.iter().for_each(|(name, t)| w.add_f32(name, t.dims(), &floats(t)).unwrap());
    module.indices.iter().for_each(|(name, i)| w.add_i32(name, &[i.len()], i).unwrap());
    let bytes = w.finish().unwrap();
    let len = bytes.len();
    Module::load(Mapped::from_vec(bytes), 0..len, sites, &module.pet, &engine.base.spec).unwrap()
}

/// All values of a tensor.
pub fn floats(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// The largest difference between two slices.
pub fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The module as the plain loops of [`crate::reference`] take it.
pub fn plain(module: &TrainedModule) -> Plain<'_> {
    let floats = module.tensors.iter().map(|(n, t)| (n.clone(), floats(t))).collect();
    Plain { pet: &module.pet, floats, integers: &module.indices }
}
