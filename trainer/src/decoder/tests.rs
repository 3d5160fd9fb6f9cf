use super::*;
use crate::nn::check::wave;
use crate::nn::pool::pool;
use candle_core::{Device, IndexOp};
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::lora;
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::tiny::{self, TinyConfig};
use conpet_runtime::forward::Scratch;
use conpet_runtime::module::Module;
use std::path::Path;

pub(crate) fn engine() -> Engine {
    let map = Mapped::from_vec(tiny::base(&TinyConfig::default()).unwrap());
    Engine::new(Arc::new(Base::from_map(map, Path::new("tiny.gguf")).unwrap()), 2)
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
        ["the list of files", " open", "water and oil, 42"].iter().map(|t| e.prompt(t, false).unwrap()).collect();
    let lens: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
    let all: Vec<_> = prompts.iter().collect();
    for (mode, module, adapters) in [
        (WeightMode::Dense, None, Adapters::default()),
        (WeightMode::Dense, Some(&m), a.clone()),
        (WeightMode::Quant, Some(&m), a.clone()),
    ] {
        let d = Decoder::new(&e, 2, mode).unwrap();
        let trunk = e.trunk(&all, 2, None, &mut s).hidden;
        let x = Tensor::from_slice(&trunk, (lens.iter().sum::<usize>(), spec.hidden), &Device::Cpu).unwrap();
        let y = d.final_norm(&d.forward(&x, &Ragged::new(spec, &lens), &adapters).unwrap()).unwrap();
        let logits = d.output().apply(&y).unwrap();
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
fn a_gradient_reaches_every_factor_and_nothing_frozen_and_segments_change_nothing() {
    let e = engine();
    let spec = &e.base.spec;
    let a = adapters(spec);
    let d = Decoder::new(&e, 2, WeightMode::Dense).unwrap();
    let lens = [4, 3];
    let x = Tensor::from_vec(wave(7 * spec.hidden, 0.0), (7, spec.hidden), &Device::Cpu).unwrap();
    let batch = Ragged::new(spec, &lens);
    let head = Var::from_tensor(&Tensor::from_vec(wave(spec.hidden * 3, 2.0), (3, spec.hidden), &Device::Cpu).unwrap())
        .unwrap();
    let loss = |y: &Tensor| -> Result<Tensor> {
        let f = pool(&d.final_norm(y)?, vec![0..4, 4..7])?;
        candle_nn::loss::cross_entropy(
            &f.matmul(&head.as_tensor().t()?)?,
            &Tensor::from_slice(&[0u32, 2], 2, &Device::Cpu)?,
        )
    };
    let (value, whole, extra) = d.backward(&x, &batch, &a, 0, &[&head], loss).unwrap();
    assert_eq!(whole.len(), 2 * a.sites.len(), "every factor has a gradient");
    for (name, g) in &whole {
        let size = g.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(size > 0.0, "{name}: the gradient is zero");
    }
    assert!(extra[0].is_some());
    let (again, parts, extra2) = d.backward(&x, &batch, &a, 1, &[&head], loss).unwrap();
    assert_eq!(value, again);
    let close = |a: &Tensor, b: &Tensor| {
        let d = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let s = a.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        // The same operations, summed once more at the seam.
        assert!(d <= 1e-5 * s + 1e-8, "gradients differ by {d} of {s}");
    };
    whole.iter().for_each(|(n, g)| close(g, &parts[n]));
    close(extra[0].as_ref().unwrap(), extra2[0].as_ref().unwrap());
    // The graph's leaves are the factors and the head alone: frozen weights are no inputs of it.
    let y = d.forward(&x, &batch, &a).unwrap();
    let store = loss(&y).unwrap().backward().unwrap();
    let vars = a.sites.values().flat_map(|(a, b)| [a, b]).chain([&head]);
    assert_eq!(vars.filter(|v| store.get(v).is_some()).count(), 2 * a.sites.len() + 1);
    assert!(store.get(&x).is_none());
}
