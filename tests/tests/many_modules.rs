//! Many modules in one bundle: what they cost when they are not in force, and that one leaves no
//! trace in the next.

#![expect(clippy::print_stdout, reason = "a test that measures says what it found")]

use conpet_formats::bundle::manifest::{ModuleEntry, TaskEntry, TaskKind};
use conpet_formats::bundle::{Bundle, Draft, SectionKind};
use conpet_formats::decimal::Decimal;
use conpet_formats::fingerprint::base_ref;
use conpet_formats::pet::PetKind;
use conpet_formats::pet::lora::{Scaling, a_name, b_name};
use conpet_formats::tensors::TensorsWriter;
use conpet_runtime::engine::Engine;
use conpet_runtime::forward::Scratch;
use conpet_runtime::generate::Sequence;
use conpet_runtime::kv::KvType;
use conpet_runtime::skills::Skills;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

const RANK: usize = 8;
const TRUNK: u32 = 2;

/// A bundle of `n` generation tasks, each with a module on these linears above the trunk.
fn bundle(engine: &Engine, path: &Path, n: usize, linears: &[&str]) {
    let spec = &engine.base.spec;
    let base = base_ref(&engine.base.gguf().unwrap(), engine.base.map()).unwrap();
    let mut d = Draft::new(base, "dynamic", TRUNK);
    let shapes = spec.linears();
    let sites: Vec<(String, usize, usize)> = (TRUNK as usize..spec.n_layer)
        .flat_map(|l| shapes.map(|(short, out, input)| (l, short, out, input)))
        .filter(|(_, short, _, _)| linears.is_empty() || linears.contains(short))
        .map(|(l, short, out, input)| (format!("blk.{l}.{short}.weight"), out, input))
        .collect();
    let mut names: Vec<String> = sites.iter().map(|s| s.0.clone()).collect();
    names.sort();
    d.manifest.target_sets.insert("all".into(), names);
    for id in 0..n {
        let mut w = TensorsWriter::new();
        let wave = |len: usize, phase: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * 7 + phase) as f32 * 0.37).sin() * 0.2).collect()
        };
        for (i, (site, out, input)) in sites.iter().enumerate() {
            w.add_f16(&a_name(site), &[RANK, *input], &wave(RANK * input, id + i)).unwrap();
            w.add_f16(&b_name(site), &[*out, RANK], &wave(out * RANK, 3 * id + i)).unwrap();
        }
        let section = d.add_section(SectionKind::Module, w.finish().unwrap());
        d.manifest.modules.push(ModuleEntry {
            alpha: Decimal::from_f64(16.0),
            dtype: "F16".into(),
            id: format!("m{id:04}"),
            kind: PetKind::Lora,
            rank: RANK as u32,
            scale: Decimal::from_f64(2.0),
            scaling: Scaling::AlphaOverRank,
            section,
            site_count: sites.len() as u32,
            targets: "all".into(),
            train: BTreeMap::new(),
        });
        d.manifest.tasks.push(TaskEntry {
            ensemble: Vec::new(),
            head: None,
            id: id as u32,
            kind: TaskKind::Generation,
            labels: Vec::new(),
            max_answer: 8,
            module: Some(id as u32),
            name: format!("task {id}"),
            stage: 1,
            template: "{input}".into(),
        });
    }
    d.create(path).unwrap();
}

#[test]
fn a_thousand_modules_cost_little_memory() {
    let dir = tempfile::tempdir().unwrap();
    let base = conpet_tests::tiny_base(dir.path(), 1);
    let engine = Engine::open(&base, 1).unwrap();
    let measure = |n: usize| {
        let path = dir.path().join(format!("{n}.cpb"));
        bundle(&engine, &path, n, &[]);
        let out = Command::new(conpet_tests::program("conpet-run"))
            .args(["bench", "--json", "-p", "8", "-n", "4", "-r", "1", "-m"])
            .arg(&base)
            .arg("-b")
            .arg(&path)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let v: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        let field = |name: &str| v[0][name].as_f64().unwrap();
        assert_eq!(v[0]["n_modules"], n);
        println!("{n} modules: {} kB private, opened in {:.1} ms", field("rss_anon_all_modules_kb"), field("open_ms"));
        field("rss_anon_all_modules_kb")
    };
    // After every module was put in force once: this also counts what each leaves behind.
    let (one, thousand) = (measure(1), measure(1000));
    assert!(thousand - one < 10_000.0, "999 modules hold {} kB", thousand - one);
}

#[test]
fn going_back_to_a_module_equals_never_having_left_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = conpet_tests::tiny_engine(dir.path());
    let path = dir.path().join("b.cpb");
    bundle(&engine, &path, 3, &[]);
    let skills = Skills::new(Bundle::open(&path).unwrap(), &engine.base).unwrap();
    let mut s = Scratch::default();
    let tokens = engine.prompt("the list of two words and the number", None).unwrap().tokens;
    let (start, rest) = tokens.split_at(tokens.len() / 2);
    let mut answer = |run: &mut Sequence, module: Option<usize>| {
        let module = module.map(|m| skills.module(m, &engine.base).unwrap());
        let mut logits = vec![0.0; engine.base.spec.vocab];
        run.truncate(0);
        run.extend(&engine, start, module, &mut s, None);
        run.extend(&engine, rest, module, &mut s, Some(&mut logits));
        logits
    };
    let fresh = || Sequence::new(&engine, TRUNK as usize);
    let cold: Vec<Vec<f32>> = [None, Some(0), Some(1), Some(2)].map(|m| answer(&mut fresh(), m)).to_vec();
    for (i, a) in cold.iter().enumerate() {
        assert!(cold[..i].iter().all(|b| a != b), "module {i} does nothing");
    }
    // One work space, one cache, any order.
    let mut run = fresh();
    for m in [1usize, 2, 1, 0, 3, 3, 0, 2, 3, 1] {
        assert_eq!(answer(&mut run, m.checked_sub(1)), cold[m], "form {m} met something left behind");
    }
}

#[test]
fn a_module_on_some_linears_only_runs_token_by_token_as_in_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = conpet_tests::tiny_engine(dir.path());
    engine.kernels = engine.kernels.exact();
    engine.kv_type = KvType::F32;
    let p = engine.prompt("the list of two words and the number", None).unwrap();
    let mut s = Scratch::default();
    let bare = engine.logits(&p, None, &mut s);
    for linears in [&["attn_q", "attn_v"][..], &["ffn_gate"], &["attn_k"], &["ffn_up", "ffn_down"], &["attn_output"]] {
        let path = dir.path().join(format!("{}.cpb", linears.join("-")));
        bundle(&engine, &path, 1, linears);
        let skills = Skills::new(Bundle::open(&path).unwrap(), &engine.base).unwrap();
        let module = skills.module(0, &engine.base).unwrap();
        let batch = engine.logits(&p, Some(module), &mut s);
        let single = Sequence::new(&engine, TRUNK as usize).all_logits(&engine, &p, Some(module), &mut s);
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs()));
        assert!(far(&batch, &bare) > 0.05, "{linears:?}: the module does nothing");
        assert!(far(&batch, &single) < 5e-3, "{linears:?}: {} apart", far(&batch, &single));
    }
}
