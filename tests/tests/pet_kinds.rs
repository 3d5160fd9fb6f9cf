//! Every PET kind from end to end: documented, computed alike by reference, trainer and runtime, learned,
//! stored, inspected, put in force, swept.

use candle_core::{Device, IndexOp, Tensor};
use conpet_formats::bundle::verify;
use conpet_formats::pet::{Budget, PetKind, PetSpec};
use conpet_formats::tiny::TinyConfig;
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use conpet_tests::kinds::{
    engine_of, families, far, floats, in_full, loaded, output, parse, plain, possible, trained_output, trunk, uneven,
};
use conpet_tests::{program, reference, tiny_base, tiny_engine, tiny_stream, tiny_with};
use conpet_trainer::config::Config;
use conpet_trainer::decoder::{Decoder, Training, WeightMode};
use conpet_trainer::nn::attention::Ragged;
use conpet_trainer::run::Run;
use conpet_trainer::stream;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Fails if a kind is missing from the table of `docs/pet-kinds.md`, with all its options, or has no section there.
#[test]
fn every_kind_is_documented_with_its_options() {
    let page = include_str!("../../docs/pet-kinds.md");
    for kind in PetKind::ALL {
        let name = kind.name();
        let row = page.lines().find(|l| l.starts_with(&format!("| `{name}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/pet-kinds.md has no row for {name}"));
        for (option, _) in kind.usual().syntax().split(',').filter_map(|o| o.split_once('=')) {
            assert!(row.contains(&format!("`{option}`")), "the row of {name} lacks its option {option}: {row}");
        }
        let section = page.lines().any(|l| l.strip_prefix("## ").is_some_and(|l| l.split(' ').next() == Some(name)));
        assert!(section, "docs/pet-kinds.md has no section for {name}");
    }
}

/// Forms and combinations that are tested besides every kind's default.
const FORMS: [&str; 9] = [
    "ia3:at=attn_q/attn_output/ffn_gate/ffn_up/ffn_down",
    "adapter:n=5,act=relu",
    "adapter:n=5,form=pfeiffer",
    "adapter:n=5,form=parallel",
    "adapter:n=5,form=parallel,at=attn_output/ffn_down,last=1",
    "lora:r=3,scaling=alpha/sqrt(r)",
    "lora:r=2,at=attn_q/attn_v/ffn_down+sparse:n=50+ia3+bias+adapter:n=2+prefix:n=2",
    "lora:r=2,at=attn_q+bias:at=ffn_norm/attn_k,last=1",
    "prefix:n=2+prompt:n=2+lora:r=1",
];

/// Fails if a kind's mechanism is missing from trainer or runtime, or acts at another place.
#[test]
fn scalar_reference_trainer_and_runtime_compute_the_same_for_every_kind() {
    for (family, config) in families() {
        three_ways(family, &config);
    }
}

fn three_ways(family: &str, config: &TinyConfig) {
    let engine = engine_of(config);
    let spec = &engine.base.spec;
    // Logits are of size about 30, the last states of an encoder about 1.
    let unit = if spec.causal { 1.0 } else { 0.04 };
    let texts = ["the list of files", " open", "water and oil, 42"];
    let prompts: Vec<_> = texts.iter().map(|t| Arc::new(engine.prompt(t, None).unwrap())).collect();
    let lens: Vec<usize> = prompts.iter().map(|p| p.tokens.len()).collect();
    let bare: Vec<Vec<f32>> = prompts.iter().map(|p| output(&engine, p, &Blend::none())).collect();
    let usual = PetKind::ALL.iter().map(|k| {
        let pet = parse(k.name());
        if !possible(spec, &pet) {
            return pet;
        }
        pet.sized(spec, trunk(spec, &pet), Budget::Parameters(3000)).unwrap()
    });
    let tried = |pet: &PetSpec| possible(spec, pet) && (in_full(family) || pet.parts().len() > 2);
    let all: Vec<PetSpec> = usual.chain(FORMS.map(parse)).filter(tried).collect();
    assert!(!all.is_empty());
    for pet in all {
        let (module, sites) = uneven(&engine, &pet);
        let blend = Blend::from(Arc::new(loaded(&engine, &module, &sites)));
        let plain = plain(&module);
        let hidden = engine.trunk(prompts.clone(), trunk(spec, &pet), None, false).hidden;
        let x = Tensor::from_slice(&hidden, (lens.iter().sum::<usize>(), spec.hidden), &Device::Cpu).unwrap();
        for mode in [WeightMode::Dense, WeightMode::Quant] {
            let d = Decoder::new(&engine, trunk(spec, &pet), mode);
            let y = d.forward(&x, &Ragged::new(spec, &lens), &module, &Training::default()).unwrap();
            let logits = trained_output(&d, &y);
            let mut at = 0;
            for (p, bare) in prompts.iter().zip(&bare) {
                let n = p.tokens.len();
                let trained = floats(&logits.i(at..at + n).unwrap());
                let run = output(&engine, p, &blend);
                let want = reference::logits(&engine.base, &p.tokens, &[(1.0, &plain)]);
                // The same sums in a different order, through four layers, on logits of size about 30.
                let [served, trained] = [far(&run, &want), far(&trained, &want)];
                assert!(served < 4e-3 * unit, "{family}, {pet}: the runtime is {served} from the reference");
                assert!(trained < 4e-3 * unit, "{family}, {pet}: the trainer is {trained} from it");
                assert!(far(&run, bare) > 0.05 * unit, "{family}, {pet}: the module does nothing");
                at += n;
            }
        }
    }
}

/// Learns the two tasks with labels; returns the mean accuracy, and answers to one input of each.
fn learn(engine: &Engine, dir: &Path, config: Config) -> (f64, Vec<Option<String>>) {
    let mut tasks = stream::open(&tiny_stream(dir)).unwrap();
    tasks.truncate(2);
    let out = dir.join(format!(
        "{}-{}.cpb",
        config.run.method,
        config.services.module.pet.replace([':', '=', ',', '/'], "-")
    ));
    let stop = AtomicBool::new(false);
    let mut run = Run::new(config, engine, tasks, &out, &stop, |_| {}).unwrap();
    let report = run.stream(false).unwrap().unwrap();
    assert_eq!(verify(&out, true).unwrap(), []);
    let skills = Skills::open(&out, &engine.base).unwrap();
    let texts = ["how large is our tower", "the colour of that sea"];
    let answers = engine.classify(&skills, &texts, None).unwrap();
    (report.metrics.average_accuracy, answers.into_iter().map(|a| a.label).collect())
}

/// Fails if what is trained is not what is stored, loaded and run.
#[test]
fn every_kind_is_learned_stored_and_served() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    let specs = [
        ("bias", 1),
        ("ia3", 1),
        ("adapter:n=4,form=parallel,at=attn_output/ffn_down", 1),
        ("prefix:n=4,mid=8", 1),
        ("prompt:n=3", 0),
        ("sparse:n=500,rule=fisher", 1),
        ("lora:r=2,at=attn_q/attn_v+bias", 1),
    ];
    let missing = |k: &&PetKind| !specs.iter().any(|(text, _)| parse(text).part(**k).is_some());
    assert_eq!(PetKind::ALL.iter().find(missing), None, "a kind is not tried");
    for (pet, trunk) in specs {
        let (accuracy, answers) = learn(&engine, dir.path(), tiny_with(&format!("pet={pet} trunk={trunk}")));
        // Chance is a half; the two inputs are among the easy ones.
        assert!(accuracy >= 0.75, "{pet}: accuracy {accuracy}");
        assert_eq!(answers, [Some("big".into()), Some("blue".into())], "{pet}");
    }
}

/// Fails if training cannot continue from a module: a sparse delta keeps its positions, and a prefix's pairs
/// are trained without their MLP.
#[test]
fn one_module_goes_on_learning_whatever_its_kind() {
    let dir = tempfile::tempdir().unwrap();
    let engine = tiny_engine(dir.path());
    for pet in ["sparse:n=500,rule=fisher", "prefix:n=4,mid=8+bias"] {
        let (_, answers) = learn(&engine, dir.path(), tiny_with(&format!("pet={pet} method=sequential")));
        // The last task is remembered.
        assert_eq!(answers[0].as_deref(), Some("big"), "{pet}");
    }
}

fn run(dir: &Path, program_name: &str, args: &str) -> Output {
    Command::new(program(program_name)).current_dir(dir).args(args.split(' ')).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn programs_take_show_and_run_a_kind() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::rename(tiny_base(at, 1), at.join("base.gguf")).unwrap();
    tiny_stream(at);
    let learn = "stream stream -m base.gguf -b b.cpb --tasks 2 --trunk 1 --epochs 2 --lr 5e-3 --threads 2";
    let out = run(at, "conpet-train", &format!("{learn} --pet bias+lora:r=2 --params 2%"));
    assert!(out.status.success(), "{}", text(&out.stderr));
    let shown = text(&run(at, "conpet-inspect", "b.cpb").stdout);
    assert!(shown.contains("kind:bias, kind:lora"), "{shown}");
    assert!(shown.lines().any(|l| l.contains("m0001") && l.contains("lora:r=") && l.contains("+bias")), "{shown}");
    let answer = run(at, "conpet-run", "classify -m base.gguf -b b.cpb tower");
    assert!(answer.status.success(), "{}", text(&answer.stderr));
    for (pet, code, says) in [
        ("--pet prompt", 2, "--trunk 0"),
        ("--pet lore", 1, "lore"),
        ("--pet lora:r=4096 --params 10", 1, "too few"),
        ("--params 0", 1, "--params"),
        ("--pet sparse:n=100000000", 1, "100000000"),
    ] {
        let out = run(at, "conpet-train", &format!("{} {pet}", learn.replace("b.cpb", "x.cpb")));
        let err = text(&out.stderr);
        assert!(out.status.code() == Some(code) && err.contains(says) && err.contains("hint:"), "{pet}: {err}");
        assert!(!at.join("x.cpb").exists());
    }
}

/// Fails if a point is not trained, if a larger one does not have more parameters, or if a resumed sweep
/// repeats a point.
#[test]
fn a_sweep_scores_kinds_at_sizes_beside_the_head_alone_and_goes_on_where_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    std::fs::rename(tiny_base(at, 1), at.join("base.gguf")).unwrap();
    tiny_stream(at);
    let sweep = "sweep stream -m base.gguf --task colour --task size --kind bias --kind lora --kind sparse:rule=magnitude \
                 --kind prompt --sizes 64,600,6000 --rates 5e-3 --trunk 1 --epochs 3 --threads 2 -o out";
    let first = run(at, "conpet-train", sweep);
    assert!(first.status.success(), "{}", text(&first.stderr));
    let read =
        || -> serde_json::Value { serde_json::from_slice(&std::fs::read(at.join("out/sweep.json")).unwrap()).unwrap() };
    let json = read();
    let points = json["points"].as_array().unwrap();
    for kind in ["bias", "lora", "sparse:rule=magnitude", "prompt"] {
        let mine: Vec<_> = points.iter().filter(|p| p["kind"] == kind).collect();
        let numbers: Vec<u64> = mine.iter().map(|p| p["numbers"].as_u64().unwrap()).collect();
        assert!(numbers.len() >= 2 && numbers.windows(2).all(|w| w[0] < w[1]), "{kind}: {numbers:?}");
        assert!(mine.iter().all(|p| p["accuracy"].as_f64().unwrap() > 0.4), "{kind}");
    }
    // The prompt needs a trunk of 0, and so a second head alone.
    assert_eq!(points.iter().filter(|p| p["kind"] == "head alone").count(), 2);
    let page = std::fs::read_to_string(at.join("out/sweep.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("sparse:rule=magnitude") && !page.contains("http"));
    let refused = run(at, "conpet-train", sweep);
    assert!(text(&refused.stderr).contains("--resume"));
    // Resumed without its last two points, the sweep trains only those two.
    let mut cut = json.clone();
    let all = cut["points"].as_array_mut().unwrap();
    all.truncate(all.len() - 2);
    all[1]["accuracy"] = 0.123.into();
    std::fs::write(at.join("out/sweep.json"), cut.to_string()).unwrap();
    let again = run(at, "conpet-train", &format!("{sweep} --resume"));
    assert!(again.status.success(), "{}", text(&again.stderr));
    let json = read();
    let resumed = json["points"].as_array().unwrap();
    assert_eq!((resumed.len(), resumed[1]["accuracy"].as_f64()), (points.len(), Some(0.123)));
    assert_eq!(resumed.last().unwrap()["accuracy"], points.last().unwrap()["accuracy"]);
    let other = run(at, "conpet-train", &format!("{sweep} --resume --seed 9"));
    assert!(text(&other.stderr).contains("other settings"));
}
