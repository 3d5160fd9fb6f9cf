//! Every family of bases from end to end: a stream of labels is learned, stored, routed and answered on a tiny base
//! of each.

use conpet_formats::Code;
use conpet_formats::bundle::verify;
use conpet_formats::feature::Pool;
use conpet_formats::tiny::{self, TinyArch, TinyConfig};
use conpet_runtime::engine::Engine;
use conpet_runtime::skills::Skills;
use conpet_runtime::text::Request;
use conpet_tests::{program, tiny_stream, tiny_with};
use conpet_trainer::run::Run;
use conpet_trainer::stream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::AtomicBool;

fn base(dir: &Path, arch: TinyArch) -> PathBuf {
    let path = dir.join(format!("{}.gguf", arch.name()));
    std::fs::write(&path, tiny::base(&TinyConfig { arch, ..TinyConfig::default() }).unwrap()).unwrap();
    path
}

#[test]
fn two_tasks_with_labels_are_learned_and_answered_on_every_family() {
    let dir = tempfile::tempdir().unwrap();
    let mut tasks = stream::open(&tiny_stream(dir.path())).unwrap();
    tasks.truncate(2);
    for arch in TinyArch::ALL {
        let engine = Engine::open(&base(dir.path(), arch), 2).unwrap();
        let out = dir.path().join(format!("{}.cpb", arch.name()));
        let stop = AtomicBool::new(false);
        let mut run = Run::new(tiny_with("trunk=1"), &engine, tasks.clone(), &out, &stop, |_| {}).unwrap();
        let report = run.stream(false).unwrap().unwrap();
        assert_eq!(verify(&out, true).unwrap(), [], "{arch:?}");
        // Chance is a half.
        let right = report.metrics.average_accuracy;
        assert!(right >= 0.75, "{arch:?}: {right}");
        let skills = Skills::open(&out, &engine.base).unwrap();
        let answers = engine.classify(&skills, &["how large is our tower", "the colour of that sea"], None).unwrap();
        let said: Vec<_> = answers.iter().map(|a| a.label.as_deref()).collect();
        assert_eq!(said, [Some("big"), Some("blue")], "{arch:?}");
    }
}

fn conpet_run(arguments: &[&str]) -> Output {
    Command::new(program("conpet-run")).args(arguments).output().unwrap()
}

#[test]
fn an_encoder_embeds_and_refuses_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = base(dir.path(), TinyArch::Bert);
    let engine = Engine::open(&path, 2).unwrap();
    let texts = ["water and oil", "the list of files", "water and oil"];
    let together = engine.embeddings(&texts, &engine.pooling()).unwrap();
    for (text, v) in texts.iter().zip(&together) {
        let length: f32 = v.iter().map(|x| x * x).sum();
        assert!((length - 1.0).abs() < 1e-5 && v.len() == engine.base.spec.hidden);
        // A batch rounds as one text does.
        assert_eq!(*v, engine.embeddings(&[text], &Pool::Mean).unwrap()[0]);
    }
    assert!(together[0] != together[1]);
    assert!(engine.embeddings(&texts, &Pool::First).unwrap()[0] != together[0]);
    let e = engine.generate(None, &Request { text: "x".into(), ..Request::default() }, &mut |_| true).unwrap_err();
    assert_eq!(e.code(), Code::Unsupported);

    let m = path.to_str().unwrap();
    for command in ["generate", "chat", "perplexity"] {
        let file = dir.path().join("text.txt");
        std::fs::write(&file, "some words").unwrap();
        let more: &[&str] = match command {
            "generate" => &["-p", "x"],
            "perplexity" => &["-f", file.to_str().unwrap()],
            _ => &[],
        };
        let out = conpet_run(&[&[command, "-m", m], more].concat());
        let err = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.code() == Some(2) && err.contains("predicts tokens"), "{command}: {err}");
    }
    let out = conpet_run(&["embed", "-m", m, "--json", "water and oil"]);
    let line: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let got: Vec<f32> = line["embedding"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
    assert_eq!((line["text"].as_str(), &got), (Some("water and oil"), &together[0]));
    for (flag, value, code) in [("--pooling", "median", 1), ("--task", "t", 2)] {
        let out = conpet_run(&["embed", "-m", m, flag, value, "x"]);
        assert_eq!(out.status.code(), Some(code), "{flag}: {}", String::from_utf8_lossy(&out.stderr));
    }
}

#[test]
fn a_text_task_is_refused_on_an_encoder_before_anything_is_trained() {
    let dir = tempfile::tempdir().unwrap();
    let (path, stream, out) = (base(dir.path(), TinyArch::Bert), tiny_stream(dir.path()), dir.path().join("x.cpb"));
    let tried = |more: &[&str]| {
        let arguments = ["stream", stream.to_str().unwrap(), "-m", path.to_str().unwrap(), "-b", out.to_str().unwrap()];
        let done = Command::new(program("conpet-train")).args(arguments).args(more).output().unwrap();
        let err = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.code() == Some(2) && !out.exists(), "{err}");
        err
    };
    assert!(tried(&[]).contains("is answered by text"));
    assert!(tried(&["--tasks", "2", "--head", "choice"]).contains("a choice head needs"));
    assert!(tried(&["--tasks", "2", "--trunk", "0", "--pet", "prompt"]).contains("left to right"));
    assert!(tried(&["--tasks", "2", "--pet", "lora:at=ffn_gate"]).contains("ffn_gate"));
}
