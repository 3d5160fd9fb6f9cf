//! Many modules in one bundle: their cost when they are not in force, and that none leaves a trace when another
//! is put in force.

#![expect(clippy::print_stdout, reason = "a test that measures says what it found")]

use conpet_formats::bundle::manifest::{ModuleEntry, TaskEntry, TaskKind};
use conpet_formats::bundle::{Bundle, Draft, SectionKind};
use conpet_formats::fingerprint::base_ref;
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::{Pet, PetSpec, Site, sparse};
use conpet_formats::tensors::TensorsWriter;
use conpet_runtime::batch::Span;
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::kv::KvType;
use conpet_runtime::module::Module;
use conpet_runtime::session::{Sequence, Session};
use conpet_runtime::skills::Skills;
use std::path::Path;
use std::process::Command;

const TRUNK: u32 = 2;
const LORA: &str = "lora:r=8,alpha=16";

/// A bundle of generation tasks, each with a module of this spec above the trunk.
fn bundle(engine: &Engine, path: &Path, trunk: u32, pets: &[&str]) {
    let spec = &engine.base.spec;
    let base = base_ref(&engine.base.gguf().unwrap()).unwrap();
    let mut d = Draft::new(base, "dynamic", trunk);
    for (id, text) in pets.iter().enumerate() {
        let pet = PetSpec::from_canonical(text).unwrap();
        let sites = pet.sites(spec, trunk as usize).unwrap();
        let wave = |len: usize, phase: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * 7 + phase) as f32 * 0.37).sin() * 0.2).collect()
        };
        let mut w = TensorsWriter::new();
        for (i, name) in sites.iter().enumerate() {
            let site = Site::parse(spec, name).unwrap();
            for part in pet.parts().iter().filter(|p| p.acts(spec.n_layer, site)) {
                for (j, (suffix, shape)) in part.tensors(spec, site.place).into_iter().enumerate() {
                    let numbers = wave(shape.iter().product(), (1 + 2 * j) * id + i);
                    w.add_f16(&format!("{name}.{suffix}"), &shape, &numbers).unwrap();
                }
                if let Pet::Sparse(s) = part.pet {
                    // The same number of positions at every site, far apart.
                    let (k, (out, input)) = (s.n / sites.len(), site.place.shape(spec));
                    let index: Vec<i32> = (0..k).map(|e| (e * out * input / k) as i32).collect();
                    w.add_i32(&format!("{name}.{}", sparse::NAMES[0]), &[k], &index).unwrap();
                    w.add_f16(&format!("{name}.{}", sparse::NAMES[1]), &[k], &wave(k, id + i)).unwrap();
                }
            }
        }
        let section = d.add_section(SectionKind::Module, w.finish().unwrap());
        let targets = format!("t{}", d.manifest.target_sets.values().position(|s| *s == sites).unwrap_or(id));
        d.manifest.target_sets.insert(targets.clone(), sites.clone());
        d.manifest.modules.push(ModuleEntry::new(id, &pet, section, targets, sites.len()));
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
        bundle(&engine, &path, TRUNK, &vec![LORA; n]);
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

/// Every kind that can share one bundle. A prompt needs a trunk of 0 and so a bundle of its own.
const KINDS: [&str; 9] = [
    LORA,
    LORA,
    "bias",
    "ia3",
    "adapter:n=4,form=houlsby,act=gelu",
    "adapter:n=4,form=parallel,act=relu",
    "prefix:n=70",
    "sparse:n=420,rule=random",
    "lora:r=2,alpha=4+ia3+bias+adapter:n=4,form=pfeiffer,act=gelu+prefix:n=3",
];
const WITHOUT_TRUNK: [&str; 3] = ["prompt:n=5", "prefix:n=3+prompt:n=5", "lora:r=2,alpha=4+prompt:n=2"];

/// Fails if a module reaches a token of another sequence, or misses one of its own.
#[test]
fn modules_mixed_in_one_batch_act_as_each_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = conpet_tests::tiny_engine(dir.path());
    // A sequence of one token that runs alone has the same sums in a different order.
    engine = conpet_tests::exact(engine);
    let n_layer = engine.base.spec.n_layer;
    for (trunk, pets) in [(TRUNK, &KINDS[..]), (0, &WITHOUT_TRUNK)] {
        let path = dir.path().join(format!("{trunk}.cpb"));
        bundle(&engine, &path, trunk, pets);
        let skills = Skills::open(&path, &engine.base).unwrap();
        // The bare base first, in the middle and last; a module twice side by side and again apart.
        let order = [None, Some(0), Some(0)].into_iter().chain((0..pets.len()).map(Some)).chain([None, Some(0), None]);
        let blends: Vec<Blend> = order.map(|m| Blend::from(m.map(|m| skills.module(m).unwrap()))).collect();
        let words = "the list of two words and the number of the day in the long light";
        let tokens = engine.prompt(words, None).unwrap().tokens;
        let sequences: Vec<&[u32]> = (0..blends.len()).map(|i| &tokens[i % 3..][..1 + i * 5 % 9]).collect();
        let run = |which: std::ops::Range<usize>| {
            let mut spans: Vec<Span<'_>> = which.clone().map(|i| Span::once(sequences[i].len(), &blends[i])).collect();
            let mut hidden = Vec::new();
            engine.embed(sequences[which].iter().flat_map(|t| t.iter().copied().zip(0..)), &mut hidden);
            engine.device().layers(0..n_layer, &mut spans, &mut hidden, &mut |_, _| {});
            hidden
        };
        let together = run(0..blends.len());
        let apart: Vec<f32> = (0..blends.len()).flat_map(|i| run(i..i + 1)).collect();
        let most = together.iter().zip(&apart).map(|(a, b)| (a - b).abs() / (1.0 + b.abs())).fold(0.0, f32::max);
        assert!(most < 1e-4, "trunk {trunk}: states differ by {most}");
    }
}

/// Fails if a trace of a module (learned keys, prompt states, work space) remains after it was in force.
#[test]
fn going_back_to_a_module_equals_never_having_left_it() {
    let dir = tempfile::tempdir().unwrap();
    let engine = conpet_tests::tiny_engine(dir.path());
    for (trunk, pets) in [(TRUNK, &KINDS[..]), (0, &WITHOUT_TRUNK)] {
        let path = dir.path().join(format!("{trunk}.cpb"));
        bundle(&engine, &path, trunk, pets);
        let tokens = engine.prompt("the list of two words and the number", None).unwrap().tokens;
        let (start, rest) = tokens.split_at(tokens.len() / 2);
        let answer = |skills: &Skills, (session, sequence): &mut (Session, Sequence), module: Option<usize>| {
            sequence.truncate(0);
            sequence.set_blend(Blend::from(module.map(|m| skills.module(m).unwrap())));
            for part in [start, rest] {
                sequence.push(part);
                session.run(&mut [sequence]);
            }
            sequence.logits().to_vec()
        };
        let fresh = || {
            let session = Session::new(&engine, trunk as usize);
            let sequence = session.sequence(Blend::none());
            (session, sequence)
        };
        let open = || Skills::new(Bundle::open(&path).unwrap(), &engine.base).unwrap();
        let cold: Vec<Vec<f32>> = (0..=pets.len()).map(|m| answer(&open(), &mut fresh(), m.checked_sub(1))).collect();
        for (i, a) in cold.iter().enumerate() {
            assert!(cold[..i].iter().all(|b| a != b), "module {i} does nothing");
        }
        // One work space, one cache, any order.
        let (skills, mut run) = (open(), fresh());
        for m in [1usize, 2, 1, 0, 3, 3, 0, 2, 3, 1].into_iter().chain((0..cold.len()).rev()).chain(0..cold.len()) {
            let m = m % cold.len();
            assert_eq!(answer(&skills, &mut run, m.checked_sub(1)), cold[m], "form {m} met something left behind");
        }
    }
}

/// Fails if a kind acts in a batch but not in decoding, or the other way round.
#[test]
fn every_module_runs_token_by_token_as_in_a_batch() {
    let dir = tempfile::tempdir().unwrap();
    let mut engine = conpet_tests::tiny_engine(dir.path());
    engine = conpet_tests::exact(engine);
    engine = engine.with_kv_type(KvType::F32);
    let p = engine.prompt("the list of two words and the number", None).unwrap();
    let bare = engine.logits(&p, &Blend::none());
    let some_linears = ["attn_q/attn_v", "ffn_gate", "attn_k", "ffn_up/ffn_down", "attn_output"];
    let some_linears = some_linears.map(|at| format!("{LORA},at={at}"));
    let above = KINDS[2..].iter().copied().chain(some_linears.iter().map(String::as_str)).map(|k| (TRUNK, k));
    for (i, (trunk, pet)) in above.chain(WITHOUT_TRUNK.map(|k| (0, k))).enumerate() {
        let path = dir.path().join(format!("{i}.cpb"));
        bundle(&engine, &path, trunk, &[pet]);
        let skills = Skills::new(Bundle::open(&path).unwrap(), &engine.base).unwrap();
        let blend = Blend::from(skills.module(0).unwrap());
        let batch = engine.logits(&p, &blend);
        let single = conpet_tests::token_by_token(&engine, trunk as usize, blend.clone(), &p);
        let far = |a: &[f32], b: &[f32]| a.iter().zip(b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs()));
        assert!(far(&batch, &bare) > 0.05, "{pet}: the module does nothing");
        assert!(far(&batch, &single) < 5e-3, "{pet}: {} apart", far(&batch, &single));
    }
}

/// Fails if a module is applied in part: every tensor, site and number of positions must be there.
#[test]
fn a_module_that_does_not_fit_its_sites_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let engine = conpet_tests::tiny_engine(dir.path());
    let spec = &engine.base.spec;
    let bias =
        |w: &mut TensorsWriter<'_>, n: usize| w.add_f16("blk.2.attn_q.weight.bias", &[n], &vec![0.5; n]).unwrap();
    let load = |pet: &str, sites: &[&str], fill: &dyn Fn(&mut TensorsWriter<'_>)| {
        let mut w = TensorsWriter::new();
        fill(&mut w);
        let bytes = w.finish().unwrap();
        let (len, sites) = (bytes.len(), sites.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let pet = PetSpec::from_canonical(pet).unwrap();
        Module::load(Mapped::from_vec(bytes), 0..len, &sites, &pet, spec).map_err(|e| e.to_string())
    };
    let (q, width) = ("blk.2.attn_q.weight", spec.q_dim());
    assert!(load("bias", &[q], &|w| bias(w, width)).is_ok());
    let index = |w: &mut TensorsWriter<'_>, at: &[i32]| {
        w.add_i32("blk.2.attn_q.weight.sparse_index", &[at.len()], at).unwrap();
        w.add_f16("blk.2.attn_q.weight.sparse", &[at.len()], &vec![0.5; at.len()]).unwrap();
    };
    assert!(load("sparse:n=2,rule=random", &[q], &|w| index(w, &[3, 9])).is_ok());
    type Case<'a> = (&'a str, &'a [&'a str], &'a dyn Fn(&mut TensorsWriter<'_>), &'a str);
    let cases: [Case<'_>; 9] = [
        ("ia3:at=attn_k", &[q], &|w| bias(w, width), "nothing of ia3:at=attn_k acts"),
        ("ia3+bias", &[q], &|w| bias(w, width), "no site for ia3"),
        ("bias", &[q], &|w| bias(w, width + 1), "has shape"),
        ("bias", &[q, "blk.3.attn_q.weight"], &|w| bias(w, width), "blk.3.attn_q.weight"),
        ("bias", &["blk.3.attn_q.weight"], &|w| bias(w, width), "no tensor blk.3.attn_q.weight.bias"),
        ("sparse:n=3,rule=random", &[q], &|w| index(w, &[3, 9]), "2 positions"),
        ("sparse:n=2,rule=random", &[q], &|w| index(w, &[9, 3]), "ascending"),
        ("sparse:n=2,rule=random", &[q], &|w| index(w, &[3, 1 << 30]), "ascending"),
        (
            "prefix:n=2",
            &["blk.2.attn_k.weight"],
            &|w| w.add_f16("blk.2.attn_k.weight.prefix", &[2, spec.kv_dim()], &vec![0.5; 2 * spec.kv_dim()]).unwrap(),
            "not both",
        ),
    ];
    for (pet, sites, fill, says) in cases {
        let e = load(pet, sites, fill).unwrap_err();
        assert!(e.contains(says), "{pet}: {e}");
    }
}
