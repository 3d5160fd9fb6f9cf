//! A base in several files is the base it was split from: it computes the same, trains the same, and runs the
//! same bundles.

use conpet_formats::Code;
use conpet_formats::tiny;
use conpet_runtime::base::Base;
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_tests::{learn_tiny, program, tiny_base};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Writes the shards of a base; returns their paths.
fn split(dir: &Path, base: &Path, count: usize) -> Vec<PathBuf> {
    let shards = tiny::split(&std::fs::read(base).unwrap(), "split", count).unwrap();
    let put = |(name, bytes): (String, Vec<u8>)| {
        let path = dir.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    shards.into_iter().map(put).collect()
}

#[test]
fn it_computes_the_same_logits_also_under_a_memory_limit() {
    let dir = tempfile::tempdir().unwrap();
    let whole = tiny_base(dir.path(), 1);
    let logits = |base: Base| {
        let engine = Engine::new(Arc::new(base), 2);
        let prompt = engine.prompt("the number of people who find the water", None).unwrap();
        engine.logits(&prompt, &Blend::none())
    };
    let want = logits(Base::open(&whole).unwrap());
    for count in [2, 5] {
        for shard in split(dir.path(), &whole, count) {
            assert!(logits(Base::open(&shard).unwrap()) == want, "{}", shard.display());
            let mut little = Base::open(&shard).unwrap();
            little.limit_memory(80_000).unwrap();
            assert!(logits(little) == want, "{} with little memory", shard.display());
        }
    }
}

#[test]
fn a_bundle_of_one_runs_on_the_other_and_both_learn_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let whole = tiny_base(dir.path(), 1);
    let shards = split(dir.path(), &whole, 3);
    learn_tiny(&Engine::open(&whole, 2).unwrap(), dir.path(), "whole.cpb");
    learn_tiny(&Engine::open(&shards[1], 2).unwrap(), dir.path(), "split.cpb");
    let bundle = |name: &str| dir.path().join(name);
    assert!(std::fs::read(bundle("whole.cpb")).unwrap() == std::fs::read(bundle("split.cpb")).unwrap());
    let run = |command: &[&str], base: &Path| {
        let mut c = Command::new(program("conpet-run"));
        c.args(command).arg("-m").arg(base).arg("-b").arg(bundle("whole.cpb"));
        let out = c.args(["how large is our coin", "the colour of that sky"]).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let answer = |line: &str| -> serde_json::Map<String, serde_json::Value> {
            let mut answer: serde_json::Map<_, _> = serde_json::from_str(line).unwrap();
            answer.retain(|key, _| key != "ms" && !key.ends_with("_ms"));
            answer
        };
        String::from_utf8(out.stdout).unwrap().lines().map(answer).collect::<Vec<_>>()
    };
    for command in [["route", "--json"], ["classify", "--json"]] {
        let want = run(&command, &whole);
        assert!(want.len() == 2 && want[0].len() > 3, "{want:?}");
        shards.iter().for_each(|s| assert_eq!(run(&command, s), want, "{}", s.display()));
    }
}

#[test]
fn a_shard_that_is_missing_or_changes_in_use_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let shards = split(dir.path(), &tiny_base(dir.path(), 1), 3);
    let base = Base::open(&shards[0]).unwrap();
    base.check().unwrap();
    let file = std::fs::File::options().write(true).open(&shards[2]).unwrap();
    file.set_len(100).unwrap();
    let e = base.check().unwrap_err();
    assert_eq!((e.code(), e.file()), (Code::Changed, shards[2].to_str()), "{e}");
    std::fs::remove_file(&shards[2]).unwrap();
    let out = Command::new(program("conpet-run")).args(["tokenize", "x", "-m"]).arg(&shards[0]).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("{}: shard 3 of 3 is missing", shards[2].display())), "{said}");
    assert!(said.contains("hint: download or copy all shards"), "{said}");
}
