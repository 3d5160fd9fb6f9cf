use super::*;
use crate::nn::check::wave;
use crate::nn::pool::pool;
use crate::pet;
use crate::pet::probe::{PROBE, Probe};
use candle_core::{Device, Var};
use conpet_formats::feature::Reduce;
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::lora::Scaling;
use conpet_formats::pet::{Lora, PetKind, PetSpec, Place, Places, Site, sparse};
use conpet_formats::tiny::{self, TinyArch, TinyConfig};
use conpet_runtime::blend::Blend;
use std::path::Path;

pub(crate) fn engine() -> Engine {
    engine_of(&TinyConfig::default())
}

fn engine_of(config: &TinyConfig) -> Engine {
    let map = Mapped::from_vec(tiny::base(config).unwrap());
    let e = Engine::new(Arc::new(Base::from_map(map, Path::new("tiny.gguf")).unwrap()), 2);
    let exact = e.cpu().kernels.exact();
    e.with_kernels(exact)
}

/// A base of each family, and a llama with biases. The last layer of a Gemma has full attention, the one before
/// it a window shorter than the sequences here.
fn engines() -> Vec<(&'static str, Engine)> {
    let families = TinyArch::ALL.map(|arch| {
        let layers = if arch == TinyArch::Gemma3 { 6 } else { 4 };
        (arch.name(), TinyConfig { arch, layers, window: 2, ..TinyConfig::default() })
    });
    let biased = ("llama with biases", TinyConfig { biases: true, ..TinyConfig::default() });
    families.into_iter().chain([biased]).map(|(name, config)| (name, engine_of(&config))).collect()
}

/// Whether a base can have such modules.
fn possible(spec: &ModelSpec, pet: &PetSpec) -> bool {
    pet.sites(spec, first(spec, pet)).is_ok()
}

/// All PET kinds in all their forms, and some combinations.
const KINDS: [&str; 14] = [
    "lora:r=3",
    "bias",
    "ia3",
    "ia3:at=attn_q/attn_output/ffn_gate/ffn_up/ffn_down",
    "adapter:n=5",
    "adapter:n=5,form=pfeiffer,act=relu",
    "adapter:n=5,form=parallel",
    "adapter:n=5,form=parallel,at=attn_output/ffn_down,last=1",
    "prefix:n=3",
    "prompt:n=3",
    "sparse:n=400",
    "lora:r=2,at=attn_q/attn_v/ffn_down+sparse:n=50+ia3+bias+adapter:n=2+prefix:n=2",
    "lora:r=2,at=attn_q+bias:at=ffn_norm/attn_k,last=1",
    "prefix:n=2+prompt:n=2+lora:r=1",
];

fn parse(text: &str) -> PetSpec {
    PetSpec::parse(text, Lora { rank: 3, alpha: 1.5, scaling: Scaling::AlphaOverRank }, Places::LINEARS).unwrap()
}

/// The deepest trunk that a kind allows here: all but two layers, or none.
fn first(spec: &ModelSpec, pet: &PetSpec) -> usize {
    if pet.acts_on_input() { 0 } else { spec.n_layer - 2 }
}

/// A module none of whose parameters is zero.
fn module(e: &Engine, pet: &PetSpec) -> TrainedModule {
    let names = pet.sites(&e.base.spec, first(&e.base.spec, pet)).unwrap();
    let sites: Vec<Site> = names.iter().map(|s| Site::parse(&e.base.spec, s).unwrap()).collect();
    let indices = pet::choose(&e.base, pet, &sites, (1, "t"), &|_, _| Ok(())).unwrap();
    let fresh = pet::fresh(&e.base, pet, &sites, &indices, (1, "t"), |_| false);
    let tensors = fresh.into_iter().enumerate().map(|(i, x)| {
        let numbers: Vec<f32> = wave(x.values.len(), i as f32).iter().map(|v| 0.2 * v).collect();
        (x.name, Var::from_tensor(&Tensor::from_vec(numbers, x.shape, &Device::Cpu).unwrap()).unwrap())
    });
    let tensors = tensors.map(|(n, v)| (n, v.as_tensor().clone())).collect();
    TrainedModule { tensors, indices, ..TrainedModule::none(pet.clone()) }
}

fn numbers_of(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap()
}

fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn without_a_module_trainer_and_runtime_compute_the_same() {
    for (family, e) in engines() {
        let spec = &e.base.spec;
        let p = Arc::new(e.prompt("water and oil, 42", None).unwrap());
        let trunk = e.trunk(vec![p.clone()], spec.n_layer - 2, None, false).hidden;
        let x = Tensor::from_slice(&trunk, (p.tokens.len(), spec.hidden), &Device::Cpu).unwrap();
        let d = Decoder::new(&e, spec.n_layer - 2, WeightMode::Dense);
        let none = TrainedModule::none(parse("lora"));
        let y = d.forward(&x, &Ragged::new(spec, &[p.tokens.len()]), &none, &Training::default()).unwrap();
        let y = d.final_norm(&y).unwrap();
        let (got, want) = if spec.causal {
            (numbers_of(&d.logits(&y).unwrap()), e.logits(&p, &Blend::none()))
        } else {
            (numbers_of(&y), e.trunk(vec![p], spec.n_layer, None, false).hidden)
        };
        // The same f32 sums, in a different order.
        assert!(far(&got, &want) < 2e-3, "{family}: {}", far(&got, &want));
    }
}

#[test]
fn a_gradient_reaches_every_factor_and_nothing_frozen_and_recomputing_changes_nothing() {
    for (family, e) in engines() {
        let spec = &e.base.spec;
        for text in
            ["lora", "lora:r=2+sparse:n=40+ia3+bias+adapter:n=2+prefix:n=2", "prompt:n=2+adapter:form=parallel,n=2"]
        {
            let pet = parse(text);
            if !possible(spec, &pet) {
                continue;
            }
            let a = module(&e, &pet);
            let d = Decoder::new(&e, first(spec, &pet), WeightMode::Dense);
            let lens = [4, 3];
            let x = Tensor::from_vec(wave(7 * spec.hidden, 0.0), (7, spec.hidden), &Device::Cpu).unwrap();
            let batch = Ragged::new(spec, &lens);
            let head = Tensor::from_vec(wave(spec.hidden * 3, 2.0), (3, spec.hidden), &Device::Cpu).unwrap();
            let head = Var::from_tensor(&head).unwrap();
            let loss = |y: &Tensor| -> Result<Tensor> {
                let f = pool(&d.final_norm(y)?, vec![(0..4, Reduce::Mean), (4..7, Reduce::Max)])?;
                candle_nn::loss::cross_entropy(
                    &f.matmul(&head.as_tensor().t()?)?,
                    &Tensor::from_slice(&[0u32, 2], 2, &Device::Cpu)?,
                )
            };
            let backward = |how: &Training| {
                let l = loss(&d.forward(&x, &batch, &a, how).unwrap()).unwrap();
                (l.to_scalar::<f32>().unwrap(), l.backward().unwrap())
            };
            let (value, store) = backward(&Training::default());
            let size = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            for (name, var) in &a.tensors {
                assert!(size(store.get(var).expect(name)) > 0.0, "{family}, {text}: the gradient of {name} is zero");
            }
            assert!(store.get(&head).is_some());
            // Frozen weights are not inputs of the graph, and the states it starts from are data. (candle gives
            // states that are joined with learned rows a gradient, which nothing reads.)
            assert!(pet.part(PetKind::Prompt).is_some() || store.get(&x).is_none());
            for bytes in [0, 7 * layer::kept_per_token(spec)] {
                let (again, parts) = backward(&Training { activation_bytes: Some(bytes), ..Training::default() });
                assert_eq!(value, again);
                for (name, var) in &a.tensors {
                    let (x, y) = (store.get(var).unwrap(), parts.get(var).unwrap());
                    assert_eq!(size(&(x - y).unwrap()), 0.0, "{family}, {text}: {name}: recomputing gives the same");
                }
            }
            let dropout = |step| Training {
                dropout: Some(Dropout { p: 0.5, seed: 1, name: "t".into(), step }),
                activation_bytes: Some(0),
                threads: 2,
            };
            assert_eq!(backward(&dropout(1)).0, backward(&dropout(1)).0);
            if pet.part(PetKind::Lora).is_some() {
                assert_ne!(backward(&dropout(1)).0, backward(&dropout(2)).0);
            }
        }
    }
}

#[test]
fn every_kind_is_among_those_tried_here() {
    let missing = |k: &&PetKind| !KINDS.iter().any(|text| parse(text).part(**k).is_some());
    assert_eq!(PetKind::ALL.iter().find(missing), None);
}

/// Parameters of every tensor of every kind against central differences, through whole layers. For each kind
/// there is also a base layer below which nothing learns, so that the backward pass may stop.
#[test]
fn a_layers_gradient_is_exact_for_every_kind() {
    for (family, e) in engines() {
        let spec = &e.base.spec;
        let single =
            ["bias:at=ffn_norm", "bias:at=attn_norm", "ia3:at=ffn_down", "adapter:n=2,form=parallel,at=attn_output"];
        // The kinds alone in three families, and together, which is every point of a layer, in all.
        let all = ["llama", "gemma3", "bert"].contains(&family);
        for text in KINDS.into_iter().chain(single).filter(|text| all || text.contains("+bias+")) {
            let pet = parse(text);
            if !possible(spec, &pet) {
                assert!(!spec.causal || text.contains("norm"), "{family}: {text}");
                continue;
            }
            let a = module(&e, &pet);
            let d = Decoder::new(&e, first(spec, &pet), WeightMode::Dense);
            let batch = Ragged::new(spec, &[3, 2]);
            let x = Tensor::from_vec(wave(5 * spec.hidden, 0.0), (5, spec.hidden), &Device::Cpu).unwrap();
            let c = Tensor::from_vec(wave(5 * spec.hidden, 3.0), (5, spec.hidden), &Device::Cpu).unwrap();
            let mut drops = vec![None];
            if text == "lora:r=3" {
                drops.push(Some(Dropout { p: 0.3, seed: 1, name: "t".into(), step: 4 }));
            }
            for dropout in drops {
                let how = Training { dropout, ..Training::default() };
                let total = |a: &TrainedModule| {
                    let y = d.final_norm(&d.forward(&x, &batch, a, &how).unwrap()).unwrap();
                    (y * &c).unwrap().sum_all().unwrap()
                };
                let store = total(&a).backward().unwrap();
                for (name, var) in &a.tensors {
                    let (got, values) = (numbers_of(store.get(var).unwrap()), numbers_of(var));
                    let scale = got.iter().fold(0.05f32, |m, v| m.max(v.abs()));
                    // Only a few values of each, since a difference costs two passes.
                    for i in (0..values.len()).step_by((values.len() / 3).max(1)) {
                        let at = |delta: f32| {
                            let mut v = values.clone();
                            v[i] += delta;
                            let mut other = a.clone();
                            other.tensors.insert(name.clone(), Tensor::from_vec(v, var.dims(), &Device::Cpu).unwrap());
                            total(&other).to_scalar::<f32>().unwrap()
                        };
                        let want = (at(1e-2) - at(-1e-2)) / 2e-2;
                        // Rounding of the difference quotient: sums of size about 100 in f32, over 0.02.
                        let most = 2e-2 * scale + 2e-3;
                        assert!((got[i] - want).abs() < most, "{family}, {text}: {name} [{i}]: {} for {want}", got[i]);
                    }
                }
            }
        }
    }
}

/// Checks that the Fisher rule sums the squared gradient of the frozen weight itself, which is what a sparse
/// delta at that position changes.
#[test]
fn the_probe_sums_squared_gradients_of_frozen_weights() {
    for (family, e) in engines() {
        let spec = &e.base.spec;
        let first = spec.n_layer - 2;
        let d = Decoder::new(&e, first, WeightMode::Dense);
        let batch = Ragged::new(spec, &[4]);
        let x = Tensor::from_vec(wave(4 * spec.hidden, 0.0), (4, spec.hidden), &Device::Cpu).unwrap();
        let c = Tensor::from_vec(wave(4 * spec.hidden, 3.0), (4, spec.hidden), &Device::Cpu).unwrap();
        let total = |a: &TrainedModule| {
            let y = d.final_norm(&d.forward(&x, &batch, a, &Training::default()).unwrap()).unwrap();
            (y * &c).unwrap().sum_all().unwrap()
        };
        let sites = [(first, Place::V), (first, Place::Up), (first + 1, Place::Down)]
            .map(|(layer, place)| Site { layer, place });
        let size = |s: &Site| s.place.shape(spec).0 * s.place.shape(spec).1;
        let sums = sites.iter().map(|s| (*s, vec![0.0; size(s)])).collect();
        let probe = Arc::new(Probe { sums: std::sync::Mutex::new(sums) });
        let mut listening = TrainedModule { probe: Some(probe.clone()), ..TrainedModule::none(parse("sparse:n=1")) };
        for layer in first..spec.n_layer {
            let name = format!("{}.{PROBE}", Site { layer, place: Place::Q });
            let zero = Var::zeros(1, candle_core::DType::F32, &Device::Cpu).unwrap();
            listening.tensors.insert(name, zero.as_tensor().clone());
        }
        let before = total(&listening);
        before.backward().unwrap();
        assert_eq!(
            before.to_scalar::<f32>().unwrap(),
            total(&TrainedModule::none(parse("bias"))).to_scalar::<f32>().unwrap()
        );
        for site in sites {
            let sums = probe.sums.lock().unwrap()[&site].clone();
            let largest = sums.iter().fold(0.0, |m: f32, v| m.max(*v)).sqrt();
            for i in (0..sums.len()).step_by(sums.len() / 5) {
                let at = |delta: f32| {
                    let mut a = TrainedModule::none(parse("sparse:n=1"));
                    a.indices.insert(format!("{site}.{}", sparse::NAMES[0]), Arc::new(vec![i as i32]));
                    a.tensors
                        .insert(format!("{site}.{}", sparse::NAMES[1]), Tensor::new(&[delta], &Device::Cpu).unwrap());
                    total(&a).to_scalar::<f32>().unwrap()
                };
                let want = ((at(1e-2) - at(-1e-2)) / 2e-2).abs();
                // Rounding of the difference quotient, as above.
                assert!(
                    (sums[i].sqrt() - want).abs() < 2e-2 * largest + 2e-3,
                    "{family}, {site} [{i}]: {} for {want}",
                    sums[i].sqrt()
                );
            }
        }
    }
}
