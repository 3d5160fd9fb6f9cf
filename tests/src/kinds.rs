//! Modules of every PET kind on a base of every family, with varied parameters.

#![expect(clippy::missing_panics_doc, reason = "helpers of tests panic where a test would")]

use crate::exact;
use crate::reference::Plain;
use candle_core::{Device, Tensor};
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Lora, PetSpec, Places, Site};
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::tiny::{self, TinyArch, TinyConfig};
use conpet_runtime::base::Base;
use conpet_runtime::engine::Engine;
use conpet_runtime::module::Module;
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

/// A base of each family, in each of its variants. The last layer of the Gemma has full attention, the one
/// before it a window shorter than the sequences here.
pub fn families() -> [(&'static str, TinyConfig); 3] {
    let llama = TinyConfig::default();
    let biased = TinyConfig { biases: true, ..llama.clone() };
    let gemma = TinyConfig { arch: TinyArch::Gemma3, layers: 6, window: 2, ..TinyConfig::default() };
    [("llama", llama), ("llama with biases", biased), ("gemma3", gemma)]
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
