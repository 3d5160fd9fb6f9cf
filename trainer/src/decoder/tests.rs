use super::*;
use crate::nn::check::wave;
use crate::nn::pool::pool;
use candle_core::{Device, IndexOp};
use conpet_formats::feature::Reduce;
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::lora;
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_runtime::forward::Scratch;
use conpet_runtime::module::Module;
use std::path::Path;

pub(crate) fn engine() -> Engine {
    let map = Mapped::from_vec(tiny::base(&TinyConfig::default()).unwrap());
    let mut e = Engine::new(Arc::new(Base::from_map(map, Path::new("tiny.gguf")).unwrap()), 2);
    e.kernels = e.kernels.exact();
    e
}

/// Factors that are not zero, on every linear of layers 2 and 3.
fn adapters(spec: &ModelSpec) -> Adapters {
    let mut sites = BTreeMap::new();
    for l in 2..4 {
        for (short, out, input) in spec.linears() {
            let var = |v: Vec<f32>, s: (usize, usize)| {
                Var::from_tensor(&Tensor::from_vec(v, s, &Device::Cpu).unwrap().affine(0.2, 0.0).unwrap()).unwrap()
            };
            sites.insert(
                format!("blk.{l}.{short}.weight"),
                (var(wave(3 * input, l as f32), (3, input)), var(wave(3 * out, 1.0), (out, 3))),
            );
        }
    }
    Adapters { scale: 0.5, sites }
}

fn module(a: &Adapters, spec: &ModelSpec) -> Module {
    let mut w = TensorsWriter::new();
    for (site, (x, y)) in &a.sites {
        for (name, t) in [(lora::a_name(site), x), (lora::b_name(site), y)] {
            w.add_f32(&name, t.dims(), &t.flatten_all().unwrap().to_vec1::<f32>().unwrap()).unwrap();
        }
    }
    let bytes = w.finish().unwrap();
    let (len, sites): (usize, Vec<String>) = (bytes.len(), a.sites.keys().cloned().collect());
    Module::from_payload(Mapped::from_vec(bytes), 0..len, &sites, a.scale as f32, spec).unwrap()
}

#[test]
fn trainer_and_runtime_compute_the_same_with_and_without_a_module() {
    let e = engine();
    let spec = &e.base.spec;
    let a = adapters(spec);
    let m = module(&a, spec);
    let mut s = Scratch::default();
    let prompts: Vec<_> =
        ["the list of files", " open", "water and oil, 42"].iter().map(|t| e.prompt(t, None).unwrap()).collect();
    let lens: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
    let all: Vec<_> = prompts.iter().collect();
    for (mode, module, adapters) in [
        (WeightMode::Dense, None, Adapters::default()),
        (WeightMode::Dense, Some(&m), a.clone()),
        (WeightMode::Quant, Some(&m), a.clone()),
    ] {
        let d = Decoder::new(&e, 2, mode);
        let trunk = e.trunk(&all, 2, None, &mut s).hidden;
        let x = Tensor::from_slice(&trunk, (lens.iter().sum::<usize>(), spec.hidden), &Device::Cpu).unwrap();
        let y =
            d.final_norm(&d.forward(&x, &Ragged::new(spec, &lens), &adapters, &Training::default()).unwrap()).unwrap();
        let logits = d.logits(&y).unwrap();
        let mut at = 0;
        for p in &prompts {
            let want = e.logits(p, module, &mut s);
            for (t, want) in want.chunks_exact(spec.vocab).enumerate() {
                let got = logits.i(at + t).unwrap().to_vec1::<f32>().unwrap();
                let diff = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                // The same f32 sums in another order, through two layers, on logits of size about 30.
                assert!(diff < 2e-3, "{mode:?}: logits differ by {diff}");
                assert_eq!(conpet_runtime::sampler::argmax(&got), conpet_runtime::sampler::argmax(want));
            }
            at += p.tokens.len();
        }
    }
}

#[test]
fn a_gradient_reaches_every_factor_and_nothing_frozen_and_recomputing_changes_nothing() {
    let e = engine();
    let spec = &e.base.spec;
    let a = adapters(spec);
    let d = Decoder::new(&e, 2, WeightMode::Dense);
    let lens = [4, 3];
    let x = Tensor::from_vec(wave(7 * spec.hidden, 0.0), (7, spec.hidden), &Device::Cpu).unwrap();
    let batch = Ragged::new(spec, &lens);
    let head = Var::from_tensor(&Tensor::from_vec(wave(spec.hidden * 3, 2.0), (3, spec.hidden), &Device::Cpu).unwrap())
        .unwrap();
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
    let factors: Vec<(&String, &Var)> = a.sites.iter().flat_map(|(s, (x, y))| [(s, x), (s, y)]).collect();
    let size = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    for (site, var) in &factors {
        assert!(size(store.get(var).expect(site)) > 0.0, "{site}: the gradient is zero");
    }
    assert!(store.get(&head).is_some());
    // Frozen weights are no inputs of the graph; the states it starts from are data.
    assert!(store.get(&x).is_none());
    for bytes in [0, 7 * layer::kept_per_token(spec)] {
        let (again, parts) = backward(&Training { activation_bytes: Some(bytes), ..Training::default() });
        assert_eq!(value, again);
        for (site, var) in &factors {
            let (x, y) = (store.get(var).unwrap(), parts.get(var).unwrap());
            assert_eq!(size(&(x - y).unwrap()), 0.0, "{site}: what is computed again is the same");
        }
    }
    let dropout = |step| Training {
        dropout: Some(Dropout { p: 0.5, seed: 1, name: "t".into(), step }),
        activation_bytes: Some(0),
        threads: 2,
    };
    assert_eq!(backward(&dropout(1)).0, backward(&dropout(1)).0);
    assert_ne!(backward(&dropout(1)).0, backward(&dropout(2)).0);
}

/// Every number of every factor against central differences, through two whole layers.
#[test]
fn a_layers_gradient_is_exact() {
    let e = engine();
    let spec = &e.base.spec;
    let a = adapters(spec);
    let d = Decoder::new(&e, 2, WeightMode::Dense);
    let batch = Ragged::new(spec, &[3, 2]);
    let x = Tensor::from_vec(wave(5 * spec.hidden, 0.0), (5, spec.hidden), &Device::Cpu).unwrap();
    let c = Tensor::from_vec(wave(5 * spec.hidden, 3.0), (5, spec.hidden), &Device::Cpu).unwrap();
    for dropout in [None, Some(Dropout { p: 0.3, seed: 1, name: "t".into(), step: 4 })] {
        let how = Training { dropout, ..Training::default() };
        let total = |a: &Adapters| {
            let y = d.final_norm(&d.forward(&x, &batch, a, &how).unwrap()).unwrap();
            (y * &c).unwrap().sum_all().unwrap()
        };
        let store = total(&a).backward().unwrap();
        for (site, (fa, fb)) in &a.sites {
            for (which, var) in [fa, fb].into_iter().enumerate() {
                let got = store.get(var).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let values = var.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                let scale = got.iter().fold(0.05f32, |m, v| m.max(v.abs()));
                // A few numbers of each: a difference costs two passes.
                for i in (0..values.len()).step_by(values.len() / 3) {
                    let at = |delta: f32| {
                        let mut v = values.clone();
                        v[i] += delta;
                        let moved = Var::from_tensor(&Tensor::from_vec(v, var.dims(), &Device::Cpu).unwrap()).unwrap();
                        let mut other = a.clone();
                        let pair = other.sites.get_mut(site).unwrap();
                        *(if which == 0 { &mut pair.0 } else { &mut pair.1 }) = moved;
                        total(&other).to_scalar::<f32>().unwrap()
                    };
                    let want = (at(1e-2) - at(-1e-2)) / 2e-2;
                    // Rounding of the difference quotient: sums of size about 100 in f32, over 0.02.
                    assert!((got[i] - want).abs() < 2e-2 * scale + 2e-3, "{site} {which} [{i}]: {} for {want}", got[i]);
                }
            }
        }
    }
}
