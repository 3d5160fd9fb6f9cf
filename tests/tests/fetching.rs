//! `-hf` in the built programs, against a hub on the loopback interface.

#[path = "../../formats/fetch/tests/hub/server.rs"]
#[allow(dead_code, reason = "the server's own tests use all of it")]
mod server;

use conpet_tests::{program, tiny_base, tiny_stream};
use server::{Fault, Served, World};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const FILE: &str = "tiny-Q8_0.gguf";

struct Place {
    dir: TempDir,
    world: World,
    base: Vec<u8>,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let base = std::fs::read(tiny_base(dir.path(), 1)).unwrap();
        Self { world: World::new(vec![Served::large(FILE, &base)]), dir, base }
    }

    /// A program with nothing of this machine's settings.
    fn command(&self, name: &str, line: &str) -> Command {
        let mut c = Command::new(program(name));
        c.args(line.split_whitespace()).env_clear().stdout(Stdio::piped()).stderr(Stdio::piped());
        c.env("HF_HOME", self.dir.path().join("home")).env("HF_ENDPOINT", &self.world.endpoint);
        c
    }

    fn run(&self, name: &str, line: &str) -> Output {
        self.command(name, line).output().unwrap()
    }

    fn blobs(&self) -> PathBuf {
        self.dir.path().join("home/hub/models--o--n/blobs")
    }

    /// Bytes of the base that are here, whole or not.
    fn here(&self) -> u64 {
        let sizes = std::fs::read_dir(self.blobs()).into_iter().flatten().flatten();
        sizes.filter_map(|e| Some(e.metadata().ok()?.len())).sum()
    }
}

fn said(o: &Output) -> String {
    String::from_utf8_lossy(&o.stderr).into_owned()
}

fn ok(o: &Output) -> String {
    assert!(o.status.success(), "{}\n{}", o.status, said(o));
    String::from_utf8_lossy(&o.stdout).into_owned()
}

#[test]
fn every_program_fetches_its_base_once() {
    let p = Place::new();
    let first = p.run("conpet-run", "tokenize -hf o/n:q8_0 list --json");
    let tokens = ok(&first);
    assert!(said(&first).contains(&format!("fetching {FILE}: 0.")), "{}", said(&first));
    let again = p.run("conpet-run", "tokenize --hf-repo o/n -hff tiny-Q8_0.gguf list --json");
    assert_eq!((ok(&again), said(&again)), (tokens.clone(), String::new()));
    let shown: serde_json::Value = serde_json::from_str(&ok(&p.run("conpet-inspect", "gguf -hf o/n --json"))).unwrap();
    assert!(shown["file"].as_str().unwrap().ends_with(FILE) && shown["unsupported"].is_null());
    let stream = tiny_stream(p.dir.path());
    let probed = p.run("conpet-train", &format!("probe {} -hfr o/n -f 1:mean --json", stream.display()));
    assert!(ok(&probed).contains("1:mean"));
    assert_eq!(p.world.storage.requests().len(), 1);
    // From a variable, and without the network.
    let mut c = p.command("conpet-run", "tokenize list --json --offline");
    let asked = p.world.hub.requests().len();
    assert_eq!(ok(&c.env("LLAMA_ARG_HF_REPO", "o/n").output().unwrap()), tokens);
    let mut c = p.command("conpet-run", "tokenize -hf o/n list --json");
    assert_eq!(ok(&c.env("HF_HUB_OFFLINE", "1").output().unwrap()), tokens);
    assert_eq!(p.world.hub.requests().len(), asked);
}

#[test]
fn help_is_help_and_two_bases_are_too_many() {
    let p = Place::new();
    let help = ok(&p.run("conpet-run", "classify -h"));
    assert!(help.contains("--hf-repo <OWNER/NAME[:QUANT]>") && help.contains("also -hf"), "{help}");
    let file = p.dir.path().join("tiny-1.gguf");
    let both = p.run("conpet-run", &format!("tokenize -m {} -hf o/n list", file.display()));
    assert!(said(&both).contains("give -m or -hf, not both"), "{}", said(&both));
    // A flag beats a variable.
    let mut c = p.command("conpet-run", &format!("tokenize -m {} list", file.display()));
    ok(&c.env("LLAMA_ARG_HF_REPO", "o/none").output().unwrap());
    let mut c = p.command("conpet-run", "tokenize -hf o/n list");
    ok(&c.env("LLAMA_ARG_MODEL", "/none.gguf").output().unwrap());
    let none = p.run("conpet-run", "tokenize -hf o/n list --offline --hf-file x.gguf");
    assert!(said(&none).contains("x.gguf"), "{}", said(&none));
    let bad = p.run("conpet-run", "tokenize -hf o list");
    assert!(said(&bad).contains("--hf-repo o") && said(&bad).contains("OWNER/NAME"), "{}", said(&bad));
    let fresh = Place::new();
    let out = fresh.run("conpet-run", "tokenize -hf o/n list --offline");
    assert!(said(&out).contains("not in the cache") && fresh.world.hub.requests().is_empty(), "{}", said(&out));
}

/// Whether the program is killed or interrupted, also where an interrupt otherwise waits for a training step.
#[test]
fn a_program_that_is_stopped_midway_is_resumed_by_the_next() {
    let p = Place::new();
    let stream = tiny_stream(p.dir.path());
    let training = format!("stream {} -hf o/n -b {}", stream.display(), p.dir.path().join("x.cpb").display());
    let cases =
        [("-KILL", "conpet-run", "tokenize -hf o/n list", None), ("-INT", "conpet-train", &training, Some(130))];
    for (i, (signal, name, line, code)) in cases.into_iter().enumerate() {
        // A little at a time, so that the program looks at its signals, and never all.
        let slow = [const { Fault::Cut(2000) }; 20];
        p.world.storage.faults.lock().unwrap().clear();
        p.world.storage.will(&slow);
        let child = p.command(name, line).spawn().unwrap();
        let begun = Instant::now();
        while p.here() < 2000 * (i as u64 + 1) && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(20));
        }
        Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        let out = child.wait_with_output().unwrap();
        assert_eq!(out.status.code(), code, "{signal}: {}", said(&out));
        let blobs: Vec<_> = std::fs::read_dir(p.blobs()).unwrap().flatten().map(|e| e.path()).collect();
        assert!(blobs.len() == 1 && blobs[0].extension().is_some_and(|e| e == "incomplete"), "{blobs:?}");
    }
    p.world.storage.faults.lock().unwrap().clear();
    let before = p.here();
    let out = p.run("conpet-run", "tokenize -hf o/n list");
    ok(&out);
    assert!(before >= 2000 && said(&out).contains("of them here"), "{}", said(&out));
    let last = p.world.storage.requests().pop().unwrap();
    assert!(last.headers["range"].starts_with(&format!("bytes={before}")), "{last:?}");
    assert!(std::fs::read(find(&p.blobs())).unwrap() == p.base);
}

fn find(blobs: &Path) -> PathBuf {
    std::fs::read_dir(blobs).unwrap().flatten().next().unwrap().path()
}

#[test]
fn two_programs_at_once_fetch_it_once() {
    let p = Place::new();
    p.world.storage.will(&[Fault::Stall(1000, Duration::from_secs(2)), Fault::Stall(10, Duration::from_millis(1))]);
    let children: Vec<_> =
        (0..2).map(|_| p.command("conpet-run", "tokenize -hf o/n list --json").spawn().unwrap()).collect();
    let outputs: Vec<Output> = children.into_iter().map(|c| c.wait_with_output().unwrap()).collect();
    assert_eq!(ok(&outputs[0]), ok(&outputs[1]));
    assert_eq!(*p.world.storage.sent.lock().unwrap(), p.base.len());
    assert_eq!(outputs.iter().filter(|o| said(o).contains("another process fetches")).count(), 1);
}
