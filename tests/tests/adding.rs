//! `conpet-train add` uses the settings that a bundle was learned with, and no command ignores an argument
//! without a message.

use conpet_formats::bundle::Bundle;
use conpet_formats::ngrams::Table;
use conpet_formats::refusal::Refusal;
use conpet_formats::tensors::Tensors;
use conpet_tests::{program, tiny_base, tiny_stream};
use std::path::Path;
use std::process::Command;

const OWN: &str = "--trunk 1 --margin 0.9 --top-k 3 --ngram-weight 3 --abstain 0.2";
const USUAL: &str = "--epochs 1 --lr 5e-3 --threads 2";

/// Exit code and standard error of `conpet-train` in a folder.
fn train(dir: &Path, command: &str) -> (Option<i32>, String) {
    let out = Command::new(program("conpet-train")).current_dir(dir).args(command.split_whitespace()).output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// A folder with a base, a stream and `two.cpb`, which has its first two tasks.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::rename(tiny_base(dir.path(), 1), dir.path().join("base.gguf")).unwrap();
    tiny_stream(dir.path());
    let (code, err) = train(dir.path(), &format!("stream stream -m base.gguf -b two.cpb --tasks 2 {OWN} {USUAL}"));
    assert_eq!(code, Some(0), "{err}");
    dir
}

#[test]
fn a_plain_add_decides_as_the_bundle_did() {
    let dir = place();
    let at = dir.path();
    let (code, err) = train(at, &format!("stream stream -m base.gguf -b whole.cpb {OWN} {USUAL}"));
    assert_eq!(code, Some(0), "{err}");
    let (code, err) = train(at, &format!("add stream/echo -m base.gguf -b two.cpb {USUAL}"));
    assert_eq!(code, Some(0), "{err}");
    let bundle = Bundle::open(&at.join("two.cpb")).unwrap();
    let s = &bundle.manifest().selector;
    assert_eq!((s.margin.as_str(), s.top_k, bundle.manifest().tasks.len()), ("0.9", 3, 3));
    let payload = bundle.section(s.section.unwrap()).unwrap();
    assert_eq!(Refusal::load(payload, 3).unwrap().unwrap().share(), 0.2);
    // The result is the same as if all tasks had been learned in one stream.
    assert!(std::fs::read(at.join("two.cpb")).unwrap() == std::fs::read(at.join("whole.cpb")).unwrap());
    // The weight of n-grams is a multiple of the fitted one.
    let once = OWN.replace("--ngram-weight 3", "--ngram-weight 1");
    let (code, err) = train(at, &format!("stream stream -m base.gguf -b once.cpb {once} {USUAL}"));
    assert_eq!(code, Some(0), "{err}");
    let once = Bundle::open(&at.join("once.cpb")).unwrap();
    let [three, one] = [&bundle, &once].map(|b| {
        let payload = Tensors::parse(b.section(b.manifest().selector.section.unwrap()).unwrap()).unwrap();
        Table::ALL.map(|t| payload.get(&t.tensor("scale")).unwrap().to_f32()[0])
    });
    assert!(one.iter().sum::<f32>() > 0.0, "{one:?}");
    assert!(three.iter().zip(&one).all(|(t, o)| (t - 3.0 * o).abs() <= 1e-4 * t), "{three:?} for {one:?}");
}

#[test]
fn what_conflicts_with_the_bundle_or_has_no_effect_is_refused_by_name() {
    let dir = place();
    let at = dir.path();
    let before = std::fs::read(at.join("two.cpb")).unwrap();
    let add = format!("add stream/echo -m base.gguf -b two.cpb {USUAL}");
    for (given, says) in [
        ("--selector ridge", ["--selector", "lda"]),
        ("--trunk 2", ["--trunk", "1"]),
        ("--trunk 0", ["--trunk", "1"]),
        ("--method per-task", ["--method", "dynamic"]),
        ("--margin 0.5", ["--margin", "0.9"]),
        ("--top-k 2", ["--top-k", "3"]),
        ("--ngram-weight 1", ["--ngram-weight", "3"]),
        ("--abstain 0.05", ["--abstain", "0.2"]),
        ("--selector-feature 1:last", ["--selector-feature", "0:mean+1:mean"]),
        ("--ewc-lambda 3", ["--ewc-lambda", "no effect"]),
        ("--selector-hidden 3", ["--selector-hidden", "no effect"]),
        ("--name x", ["--name", "no effect"]),
        ("--replay-limit 3", ["--replay-limit", "no effect"]),
    ] {
        let (code, err) = train(at, &format!("{add} {given}"));
        assert!(matches!(code, Some(1 | 2)), "{given}: {code:?} {err}");
        assert!(err.contains("hint: ") && says.iter().all(|s| err.contains(s)), "{given}: {err}");
    }
    assert!(before == std::fs::read(at.join("two.cpb")).unwrap());
    // Settings that agree are not a conflict, however they are spelled; a file's settings without effect are named.
    std::fs::write(at.join("c.toml"), "trunk = -1\nmargin = 0.9\newc_lambda = 3.0\nlwf_lambda = 1.0\n").unwrap();
    let (code, err) = train(at, &format!("{add} --selector-feature auto --ngram-weight 3 --config c.toml"));
    assert_eq!(code, Some(0), "{err}");
    assert!(err.contains("ewc_lambda") && !err.contains("lwf_lambda") && !err.contains("margin"), "{err}");
}

#[test]
fn a_sweep_refuses_what_it_chooses_itself() {
    let dir = place();
    for (given, says) in [
        ("--lr 0.1", "--lr"),
        ("--pet lora", "--pet"),
        ("--params 5", "--params"),
        ("--method ewc", "--method"),
        ("--selector lda", "--selector"),
        ("--memory 3", "--memory"),
    ] {
        let (code, err) = train(dir.path(), &format!("sweep stream -m base.gguf {given}"));
        assert!(code == Some(2) && err.contains(says) && err.contains("no effect"), "{given}: {code:?} {err}");
    }
    assert!(!dir.path().join("sweep").exists());
}
