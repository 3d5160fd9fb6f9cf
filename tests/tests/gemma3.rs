//! The gemma3 family against plain loops over decoded weights, written from the published description. (The
//! usual library's version computes a different function: its gate is SiLU and its window one token wider, so
//! it cannot serve as an oracle.)

use conpet_formats::gguf::Gguf;
use conpet_formats::gguf::TensorType::Known;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::quant::{self, QuantType};
use conpet_formats::tiny::{self, TinyArch, TinyConfig};
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::kernels::Kernels;
use conpet_runtime::kv::KvType;

type Rows = Vec<Vec<f64>>;

/// A tensor's rows as floats.
fn tensor(g: &Gguf<'_>, file: &[u8], name: &str) -> Rows {
    let t = g.tensor(name).unwrap();
    let Known(ty) = t.ty else { panic!("{name}") };
    let mut out = vec![0.0; (t.rows() * t.cols()) as usize];
    quant::dequantize(ty, &file[t.offset as usize..(t.offset + t.len) as usize], &mut out);
    out.chunks_exact(t.cols() as usize).map(|r| r.iter().map(|v| f64::from(*v)).collect()).collect()
}

fn norm(x: &[f64], w: &[f64]) -> Vec<f64> {
    let rms = (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + 1e-5).sqrt();
    x.iter().zip(w).map(|(x, w)| x / rms * w).collect()
}

fn times(w: &Rows, x: &[f64]) -> Vec<f64> {
    w.iter().map(|r| r.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

/// Logits of every token: Gemma 3 Technical Report (2025), section 2, in f64.
fn reference(file: &[u8], tokens: &[u32]) -> Rows {
    let g = Gguf::parse(file).unwrap();
    let s = ModelSpec::from_gguf(&g).unwrap();
    let get = |name: &str| tensor(&g, file, name);
    let (d, group) = (s.head_dim, s.n_head / s.n_kv_head);
    let window = g.u32("gemma3.attention.sliding_window").unwrap().unwrap() as usize;
    let table = get("token_embd.weight");
    let scale = (s.hidden as f64).sqrt();
    let mut h: Rows = tokens.iter().map(|t| table[*t as usize].iter().map(|v| v * scale).collect()).collect();
    for l in 0..s.n_layer {
        let get = |name: &str| tensor(&g, file, &format!("blk.{l}.{name}.weight"));
        let (q_norm, k_norm) = (get("attn_q_norm"), get("attn_k_norm"));
        let everything = l % 6 == 5;
        let base: f64 = if everything { 1_000_000.0 } else { 10_000.0 };
        let heads = |w: &Rows, norms: Option<&Rows>, p: usize, x: &[f64]| -> Rows {
            let all = times(w, x);
            let turn = |head: &[f64]| -> Vec<f64> {
                let Some(norms) = norms else { return head.to_vec() };
                let x = norm(head, &norms[0]);
                let angle = |i: usize| p as f64 * base.powf(-2.0 * i as f64 / d as f64);
                let a = (0..d / 2).map(|i| x[i] * angle(i).cos() - x[i + d / 2] * angle(i).sin());
                a.chain((0..d / 2).map(|i| x[i] * angle(i).sin() + x[i + d / 2] * angle(i).cos())).collect()
            };
            all.chunks_exact(d).map(turn).collect()
        };
        let (wq, wk, wv) = (get("attn_q"), get("attn_k"), get("attn_v"));
        let x: Rows = h.iter().map(|h| norm(h, &get("attn_norm")[0])).collect();
        let k: Vec<Rows> = x.iter().enumerate().map(|(p, x)| heads(&wk, Some(&k_norm), p, x)).collect();
        let v: Vec<Rows> = x.iter().enumerate().map(|(p, x)| heads(&wv, None, p, x)).collect();
        for (p, x) in x.iter().enumerate() {
            let first = if everything { 0 } else { (p + 1).saturating_sub(window) };
            let mut out = Vec::new();
            for (i, q) in heads(&wq, Some(&q_norm), p, x).iter().enumerate() {
                let dot = |t: usize| q.iter().zip(&k[t][i / group]).map(|(a, b)| a * b).sum::<f64>();
                let e: Vec<f64> = (first..=p).map(|t| (dot(t) / (d as f64).sqrt()).exp()).collect();
                let sum: f64 = e.iter().sum();
                out.extend((0..d).map(|j| (first..=p).map(|t| e[t - first] / sum * v[t][i / group][j]).sum::<f64>()));
            }
            let add = norm(&times(&get("attn_output"), &out), &get("post_attention_norm")[0]);
            h[p].iter_mut().zip(add).for_each(|(h, a)| *h += a);
            let x = norm(&h[p], &get("ffn_norm")[0]);
            let gelu =
                |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh());
            let both = times(&get("ffn_gate"), &x).into_iter().zip(times(&get("ffn_up"), &x));
            let gate: Vec<f64> = both.map(|(g, u)| gelu(g) * u).collect();
            let add = norm(&times(&get("ffn_down"), &gate), &get("post_ffw_norm")[0]);
            h[p].iter_mut().zip(add).for_each(|(h, a)| *h += a);
        }
    }
    h.iter().map(|h| times(&table, &norm(h, &get("output_norm.weight")[0]))).collect()
}

#[test]
fn logits_agree_with_plain_loops_beyond_the_window() {
    let config = TinyConfig {
        arch: TinyArch::Gemma3,
        layers: 7,
        hidden: 32,
        heads: 2,
        kv_heads: 1,
        ffn: 64,
        linear: QuantType::F32,
        embedding: QuantType::F32,
        ..TinyConfig::default()
    };
    let bytes = tiny::base(&config).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gemma.gguf");
    std::fs::write(&path, &bytes).unwrap();
    let mut engine = Engine::open(&path, 2).unwrap();
    let text = "the list of people who see the number of two words and then find the long water ".repeat(5);
    let p = engine.prompt(&text, None).unwrap();
    assert!(p.tokens.len() > 80, "{} tokens do not leave the window and a block of keys", p.tokens.len());
    let want: Vec<f64> = reference(&bytes, &p.tokens).concat();
    let size = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    let close = |got: &[f32], what: &str, tolerance: f64| {
        let d = want.iter().zip(got).fold(0.0f64, |m, (a, b)| m.max((a - f64::from(*b)).abs())) / size;
        assert!(got.len() == want.len() && d < tolerance, "{what}: logits differ by {d} of the largest");
    };
    for k in Kernels::all() {
        engine = engine.with_kernels(k);
        close(&engine.logits(&p, &Blend::none()), k.name(), 1e-5);
    }
    engine = engine.with_kv_type(KvType::F32);
    close(&conpet_tests::token_by_token(&engine, 2, Blend::none(), &p), "token by token", 1e-5);
}
