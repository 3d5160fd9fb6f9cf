//! What `conpet-run` does with a bundle that is being updated: it counts a trial's starts, goes back by
//! itself, asks for signatures, and writes nothing otherwise.

use conpet_formats::bundle::update::{ApplyOptions, State, apply, mark_good, write_delta};
use conpet_formats::bundle::{Bundle, Draft, rollback};
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::fingerprint::base_ref;
use conpet_formats::gguf::Gguf;
use conpet_formats::tiny::{self, TinyConfig};
use std::path::PathBuf;
use std::process::Command;

/// A base, `b.cpb` of one stage, and the delta `d` to a second stage.
struct Place {
    dir: tempfile::TempDir,
}

/// One more task, with a head on the state after layer `layer`.
fn with_task(d: Draft, name: &str, layer: u32, hidden: usize) -> Draft {
    let feature = FeatureSpec::single(layer, Pool::Mean, StateNorm::Output);
    tiny::with_task(d, name, &["no", "yes"], feature, &vec![0.5; 2 * hidden], &[0.0, 1.0]).unwrap()
}

impl Place {
    /// The second stage's head reads the state after layer `layer`: of one that the base has not, it
    /// cannot be loaded.
    fn new(layer: u32) -> Self {
        let p = Self { dir: tempfile::tempdir().unwrap() };
        let config = TinyConfig::default();
        let base = tiny::base(&config).unwrap();
        std::fs::write(p.at("base.gguf"), &base).unwrap();
        let base = base_ref(&Gguf::parse(&base).unwrap()).unwrap();
        with_task(Draft::new(base, "dynamic", 1), "one", 1, config.hidden).create(&p.at("b.cpb")).unwrap();
        std::fs::copy(p.at("b.cpb"), p.at("new.cpb")).unwrap();
        let next = Draft::from_bundle(&Bundle::open(&p.at("new.cpb")).unwrap());
        with_task(next, "two", layer, config.hidden).append(&p.at("new.cpb")).unwrap();
        let delta = write_delta(&p.at("b.cpb"), &p.at("new.cpb"), &p.at("d")).unwrap();
        apply(&p.at("b.cpb"), &delta, ApplyOptions { trial: true, trust: None }).unwrap();
        p
    }
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    /// Exit code, standard output and standard error of one start.
    fn run(&self, extra: &[&str]) -> (Option<i32>, String, String) {
        let mut c = Command::new(env!("CARGO_BIN_EXE_conpet-run"));
        c.arg("classify").arg("-m").arg(self.at("base.gguf")).arg("-b").arg(self.at("b.cpb"));
        let o = c.args(["--task", "one", "-t", "1"]).args(extra).arg("the day").output().unwrap();
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        (o.status.code(), text(&o.stdout), text(&o.stderr))
    }
    /// Every file and its bytes.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let all = std::fs::read_dir(self.dir.path()).unwrap().map(|e| e.unwrap().path());
        let mut all: Vec<_> = all.map(|p| (p.clone(), std::fs::read(p).unwrap())).collect();
        all.sort();
        all
    }
}

/// U16: a stage that cannot be loaded is given up after exactly three starts.
#[test]
fn a_trial_that_fails_to_load_goes_back_by_itself() {
    let p = Place::new(99);
    for nth in 1..=3 {
        let (code, _, said) = p.run(&[]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(&format!("start {nth} of 3")) && said.contains("h0001"), "{said}");
    }
    let (code, answer, said) = p.run(&[]);
    assert!(code == Some(0) && answer.starts_with("yes"), "{answer}{said}");
    assert!(said.contains("stage 1 is current again"), "{said}");
    assert_eq!(Bundle::open(&p.at("b.cpb")).unwrap().stage(), 1);
    let before = p.files();
    assert_eq!(p.run(&[]).0, Some(0));
    assert_eq!(p.files(), before, "without a trial it writes nothing");
}

#[test]
fn a_trial_marked_good_is_served_and_nothing_more_is_written() {
    let p = Place::new(1);
    let (code, _, said) = p.run(&[]);
    assert!(code == Some(0) && said.contains("start 1 of 3"), "{said}");
    assert_eq!(State::load(&p.at("b.cpb")).0.trial.unwrap().tries_left, 2);
    // A named stage is no start of the trial.
    assert_eq!(p.run(&["--stage", "1"]).0, Some(0));
    assert_eq!(State::load(&p.at("b.cpb")).0.trial.unwrap().tries_left, 2);
    mark_good(&p.at("b.cpb"), true).unwrap();
    let before = p.files();
    for _ in 0..4 {
        let (code, answer, said) = p.run(&[]);
        assert!(code == Some(0) && answer.starts_with("yes") && said.is_empty(), "{said}");
    }
    let (code, _, said) = p.run(&["--stage", "1"]);
    assert!(code == Some(1) && said.contains("E_ROLLBACK"), "{said}");
    assert_eq!(p.files(), before);
}

#[test]
fn with_a_trust_file_only_signed_stages_are_served() {
    let p = Place::new(1);
    rollback(&p.at("b.cpb"), 1).unwrap();
    std::fs::write(p.at("trust"), "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n").unwrap();
    let trust = p.at("trust");
    let (code, answer, said) = p.run(&["--trust", trust.to_str().unwrap()]);
    assert!(code == Some(1) && answer.is_empty() && said.contains("E_SIGNATURE"), "{said}");
    let (code, _, said) = p.run(&["--trust", p.at("absent").to_str().unwrap()]);
    assert!(code == Some(4) && said.contains("absent"), "{said}");
}
