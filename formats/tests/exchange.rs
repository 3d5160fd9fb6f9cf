//! Adapters of other programs: what comes in is what was meant, what goes out comes back the same, and
//! what cannot be kept is refused by name.

#[path = "exchange/folder.rs"]
mod folder;
#[path = "exchange/layouts.rs"]
mod layouts;
#[path = "exchange/refusals.rs"]
mod refusals;

use conpet_formats::exchange::{self, Parcel, llama_lora, peft};
use conpet_formats::pet::{Lora, Site};
use conpet_formats::tensors::{Dtype, Tensors};
use folder::{Folder, World, numbers};
use serde_json::json;

const Q: &str = "model.layers.1.self_attn.q_proj";
const K: &str = "model.layers.1.self_attn.k_proj";
const DOWN: &str = "model.layers.1.mlp.down_proj";

/// The numbers of a parcel's tensor.
fn tensor(p: &Parcel, name: &str) -> Vec<f32> {
    Tensors::parse(&p.payload).unwrap().get(name).unwrap_or_else(|| panic!("no {name}")).to_f32()
}

fn lora(p: &Parcel) -> Lora {
    p.pet.only_lora().unwrap()
}

/// `scale · B A` of a site, `[out, in]`.
fn delta(p: &Parcel, world: &World, site: &str) -> Vec<f64> {
    let (out, input) = Site::parse(&world.spec, site).unwrap().place.shape(&world.spec);
    let (a, b, l) = (tensor(p, &format!("{site}.lora_a")), tensor(p, &format!("{site}.lora_b")), lora(p));
    product(&a, &b, [out, l.rank, input], l.scale())
}

fn product(a: &[f32], b: &[f32], [out, rank, input]: [usize; 3], scale: f64) -> Vec<f64> {
    let cell = |o: usize, i: usize| -> f64 {
        (0..rank).map(|r| f64::from(b[o * rank + r]) * f64::from(a[r * input + i])).sum::<f64>() * scale
    };
    (0..out * input).map(|x| cell(x / input, x % input)).collect()
}

/// Rows of Hugging Face's order in llama.cpp's: `reshape(heads, 2, d/2).swapaxes(1, 2)`, spelled as its
/// converter spells it and not as this crate does.
fn permuted<T: Copy>(rows: &[T], heads: usize, cols: usize) -> Vec<T> {
    let half = rows.len() / cols / heads / 2;
    let mut out = Vec::new();
    for h in 0..heads {
        for i in 0..half {
            for t in 0..2 {
                out.extend_from_slice(&rows[((h * 2 + t) * half + i) * cols..][..cols]);
            }
        }
    }
    out
}

/// Out to a PEFT folder and in again.
fn through_peft(world: &World, p: &Parcel, name: &str) -> Parcel {
    let dir = world.dir.path().join(name);
    peft::write(&dir, p, &world.spec, &world.base, None).unwrap();
    peft::read(&dir, &world.spec, &world.base).unwrap()
}

#[test]
fn lora_of_a_llama_is_permuted_and_of_a_gemma_is_not() {
    for world in [World::llama(), World::gemma()] {
        let f = Folder::lora(&world, &[(Q, 4), (K, 4), (DOWN, 4)]).write(&world);
        let p = peft::read(&f, &world.spec, &world.base).unwrap();
        assert_eq!((lora(&p).rank, lora(&p).scale(), p.dtype), (4, 2.0, Dtype::F32));
        let is_llama = world.spec.arch == "llama";
        for (module, place, heads) in [(Q, "attn_q", world.spec.n_head), (K, "attn_k", world.spec.n_kv_head)] {
            let b = numbers(&format!("{module}.lora_B.weight"), heads * world.spec.head_dim * 4);
            let want = if is_llama { permuted(&b, heads, 4) } else { b };
            assert_eq!(tensor(&p, &format!("blk.1.{place}.weight.lora_b")), want);
        }
        let a = numbers(&format!("{Q}.lora_A.weight"), 4 * world.spec.hidden);
        assert_eq!(tensor(&p, "blk.1.attn_q.weight.lora_a"), a, "A reads the residual stream, whose order is the same");
        let b = numbers(&format!("{DOWN}.lora_B.weight"), world.spec.hidden * 4);
        assert_eq!(tensor(&p, "blk.1.ffn_down.weight.lora_b"), b);
    }
}

#[test]
fn d07_what_is_written_read_and_written_again_is_the_same_bytes() {
    let world = World::llama();
    let f = Folder::lora(&world, &[(Q, 4), (DOWN, 4)]).write(&world);
    let p = peft::read(&f, &world.spec, &world.base).unwrap();
    let again = through_peft(&world, &p, "first");
    peft::write(&world.dir.path().join("second"), &again, &world.spec, &world.base, None).unwrap();
    for name in [peft::CONFIG, peft::MODEL] {
        let read = |folder: &str| std::fs::read(world.dir.path().join(folder).join(name)).unwrap();
        assert_eq!(read("first"), read("second"), "{name}");
    }
    let gguf = world.gguf(&p);
    let back = llama_lora::read(&gguf, &world.spec, &world.base).unwrap();
    assert_eq!(world.gguf(&back), gguf);
}

#[test]
fn d08_export_and_import_give_the_same_tensors() {
    for world in [World::llama(), World::gemma()] {
        for half in [false, true] {
            let mut f = Folder::lora(&world, &[(Q, 4), (K, 4), (DOWN, 4)]);
            f.set("use_rslora", json!(true)).set("lora_alpha", json!(0.3));
            f.half = half;
            let p = peft::read(&f.write(&world), &world.spec, &world.base).unwrap();
            assert_eq!(p.dtype, if half { Dtype::F16 } else { Dtype::F32 });
            let back = through_peft(&world, &p, &format!("out-{half}"));
            assert_eq!((&back.payload, &back.pet, &back.sites), (&p.payload, &p.pet, &p.sites));
            let back = llama_lora::read(&world.gguf(&p), &world.spec, &world.base).unwrap();
            assert_eq!((&back.payload, &back.sites), (&p.payload, &p.sites));
            // llama.cpp's alpha is one f32 that is divided by the rank.
            assert!((lora(&back).scale() / lora(&p).scale() - 1.0).abs() < 1e-6);
        }
    }
}

#[test]
fn settings_name_the_layers_so_that_a_shared_trunk_stays_bare() {
    let world = World::llama();
    let config = |sites: &[(&str, usize)], name: &str| -> serde_json::Value {
        let p = peft::read(&Folder::lora(&world, sites).write(&world), &world.spec, &world.base).unwrap();
        through_peft(&world, &p, name);
        serde_json::from_slice(&std::fs::read(world.dir.path().join(name).join(peft::CONFIG)).unwrap()).unwrap()
    };
    let c = config(&[(Q, 4), (K, 4)], "top");
    assert_eq!((&c["target_modules"], &c["layers_to_transform"]), (&json!(["q_proj", "k_proj"]), &json!([1])));
    let c = config(&[("model.layers.0.self_attn.q_proj", 4), (Q, 4)], "all");
    assert_eq!((&c["target_modules"], &c["layers_to_transform"]), (&json!(["q_proj"]), &json!(null)));
    let c = config(&[("model.layers.0.self_attn.v_proj", 4), (Q, 4)], "mixed");
    let names = json!(["model.layers.0.self_attn.v_proj", Q]);
    assert_eq!((&c["target_modules"], &c["layers_to_transform"]), (&names, &json!(null)));
}

#[test]
fn ranks_and_scales_of_their_own_give_the_same_product() {
    let world = World::llama();
    for rs in [false, true] {
        let mut f = Folder::lora(&world, &[(Q, 8), (DOWN, 3), (K, 4)]);
        f.set("use_rslora", json!(rs))
            .set("rank_pattern", json!({"q_proj": 8, "^model.layers.1.mlp.down_proj": 3}))
            .set("alpha_pattern", json!({"mlp.down_proj": 5.5}));
        let p = peft::read(&f.write(&world), &world.spec, &world.base).unwrap();
        assert_eq!(lora(&p).rank, 8);
        for (module, site, rank, alpha, heads) in [
            (Q, "blk.1.attn_q.weight", 8, 8.0, Some(world.spec.n_head)),
            (K, "blk.1.attn_k.weight", 4, 8.0, Some(world.spec.n_kv_head)),
            (DOWN, "blk.1.ffn_down.weight", 3, 5.5, None),
        ] {
            let (out, input) = Site::parse(&world.spec, site).unwrap().place.shape(&world.spec);
            let a = numbers(&format!("{module}.lora_A.weight"), rank * input);
            let b = numbers(&format!("{module}.lora_B.weight"), out * rank);
            let scale = if rs { alpha / f64::sqrt(rank as f64) } else { alpha / rank as f64 };
            let want = product(&a, &b, [out, rank, input], scale);
            let want = heads.map_or(want.clone(), |h| permuted(&want, h, input));
            // B is rounded to f32 once more where a scale was multiplied in.
            let far = delta(&p, &world, site).iter().zip(&want).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
            assert!(far < 1e-6, "{module}: {far}");
        }
        assert!(p.notes.iter().any(|n| n.contains("rank below 8")), "{:?}", p.notes);
        assert_eq!(through_peft(&world, &p, &format!("again-{rs}")).payload, p.payload);
    }
}

#[test]
fn ia3_scales_outputs_and_the_input_of_down() {
    let world = World::llama();
    let p = peft::read(&Folder::ia3(&world).write(&world), &world.spec, &world.base).unwrap();
    assert_eq!(p.pet.to_string(), "ia3");
    let k = numbers(&format!("{K}.ia3_l"), world.spec.kv_dim());
    let want: Vec<f32> = permuted(&k, world.spec.n_kv_head, 1).iter().map(|v| v - 1.0).collect();
    assert_eq!(tensor(&p, "blk.1.attn_k.weight.ia3"), want);
    let down: Vec<f32> = numbers(&format!("{DOWN}.ia3_l"), world.spec.ffn).iter().map(|v| v - 1.0).collect();
    assert_eq!(tensor(&p, "blk.1.ffn_down.weight.ia3"), down);
    let back = through_peft(&world, &p, "out");
    assert_eq!((&back.pet, &back.sites), (&p.pet, &p.sites));
    for site in &p.sites {
        let (a, b) = (tensor(&p, &format!("{site}.ia3")), tensor(&back, &format!("{site}.ia3")));
        // l is about 1 and written in f32, so its difference from 1 keeps 2^-24.
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() <= f32::EPSILON, "{site}"));
    }
}

#[test]
fn prompts_come_back_exactly_and_prefixes_to_rounding() {
    let world = World::llama();
    let p = peft::read(&Folder::prompt(&world, 5).write(&world), &world.spec, &world.base).unwrap();
    assert_eq!(tensor(&p, "token_embd.weight.prompt"), numbers("prompt_embeddings", 5 * world.spec.hidden));
    assert_eq!(through_peft(&world, &p, "prompt").payload, p.payload);

    let p = peft::read(&Folder::prefix(&world, 3).write(&world), &world.spec, &world.base).unwrap();
    let (kv, layers) = (world.spec.kv_dim(), world.spec.n_layer);
    let all = numbers("prompt_embeddings", 3 * layers * 2 * kv);
    let values: Vec<f32> = (0..3).flat_map(|t| all[t * layers * 2 * kv + 3 * kv..][..kv].to_vec()).collect();
    assert_eq!(tensor(&p, "blk.1.attn_v.weight.prefix"), values);
    let back = through_peft(&world, &p, "prefix");
    for site in &p.sites {
        let (a, b) = (tensor(&p, &format!("{site}.prefix")), tensor(&back, &format!("{site}.prefix")));
        // Keys are turned there and back, each time rounded to f32.
        a.iter().zip(&b).for_each(|(a, b)| assert!((a - b).abs() < 1e-6, "{site}"));
    }
}

#[test]
fn a_key_turned_by_minus_n_meets_a_query_n_positions_earlier() {
    // PEFT: R(p + n) q · k. Here: R(p) q · R(-n) k, in the other order of rows.
    let world = World::llama();
    let n = 3;
    let p = peft::read(&Folder::prefix(&world, n).write(&world), &world.spec, &world.base).unwrap();
    let (d, kv) = (world.spec.head_dim, world.spec.kv_dim());
    let ours = &tensor(&p, "blk.0.attn_k.weight.prefix")[..d];
    let theirs = &numbers("prompt_embeddings", n * world.spec.n_layer * 2 * kv)[..d];
    let q = numbers("a query", d);
    // Hugging Face's rotate_half.
    let rotate = |x: &[f32], at: f64| -> Vec<f64> {
        let half = d / 2;
        (0..d)
            .map(|i| {
                let angle = at * f64::from(world.spec.rope(0).unwrap().base).powf(-2.0 * (i % half) as f64 / d as f64);
                let other = if i < half { -f64::from(x[i + half]) } else { f64::from(x[i - half]) };
                f64::from(x[i]) * angle.cos() + other * angle.sin()
            })
            .collect()
    };
    for at in [0.0, 7.0] {
        let want: f64 = rotate(&q, at + n as f64).iter().zip(theirs).map(|(a, b)| a * f64::from(*b)).sum();
        let query = permuted(&rotate(&q, at), 1, 1);
        let got: f64 = query.iter().zip(ours).map(|(a, b)| a * f64::from(*b)).sum();
        assert!((want - got).abs() < 1e-5, "{want} {got}");
    }
}

#[test]
fn sources_are_told_apart_by_looking() {
    let world = World::llama();
    let f = Folder::lora(&world, &[(Q, 4)]).write(&world);
    assert_eq!(exchange::detect(&f).unwrap(), exchange::Source::Peft);
    assert_eq!(exchange::detect(&world.path("base.gguf")).unwrap(), exchange::Source::LlamaLora);
    assert!(exchange::detect(world.dir.path()).unwrap_err().message().contains("adapter_config.json"));
}
