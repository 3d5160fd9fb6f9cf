//! Arrows between the crates point one way: `formats <- runtime <- trainer`, `formats <- tools`, fetching and the
//! programs' common part between `formats` and them, all `<- tests`; and crates that must stay small have no large
//! dependencies.

use std::process::Command;

fn cargo(args: &[&str]) -> String {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let out = Command::new(program).args(args).current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
    assert!(out.status.success(), "cargo {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).expect("cargo prints UTF-8")
}

/// The crates that each crate of the workspace may depend on, dev-dependencies included.
const MAY_STAND_ON: [(&str, &[&str]); 7] = [
    ("conpet-formats", &[]),
    ("conpet-fetch", &["conpet-formats"]),
    ("conpet-program", &["conpet-fetch", "conpet-formats"]),
    ("conpet-runtime", &["conpet-formats", "conpet-program"]),
    ("conpet-trainer", &["conpet-formats", "conpet-program", "conpet-runtime"]),
    ("conpet-tools", &["conpet-formats", "conpet-program"]),
    ("conpet-tests", &["conpet-formats", "conpet-runtime", "conpet-trainer", "conpet-tools"]),
];

#[test]
fn arrows_point_down() {
    let text = cargo(&["metadata", "--format-version", "1", "--no-deps", "--offline"]);
    let metadata: serde_json::Value = serde_json::from_str(&text).expect("cargo metadata is JSON");
    let packages = metadata["packages"].as_array().expect("packages");
    let name = |v: &serde_json::Value| v["name"].as_str().expect("a name").to_owned();
    let mut wrong = Vec::new();
    for p in packages {
        let Some((_, allowed)) = MAY_STAND_ON.iter().find(|(n, _)| *n == name(p)) else {
            wrong.push(format!("{} has no place in the order of crates", name(p)));
            continue;
        };
        for d in p["dependencies"].as_array().expect("dependencies") {
            // Workspace crates are those that come from a path.
            if d["path"].is_string() && !allowed.contains(&name(d).as_str()) {
                wrong.push(format!("{} must not stand on {}", name(p), name(d)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(packages.len(), MAY_STAND_ON.len(), "a crate of the list is gone");
}

/// `(package, features)` of everything a package is built from, as when built alone with these options.
fn tree(package: &str, options: &[&str]) -> Vec<(String, String)> {
    let args = ["tree", "--offline", "-p", package, "-e", "normal", "--prefix", "none", "-f", "{p}|{f}"];
    let text = cargo(&[&args[..], options].concat());
    let split = |l: &str| {
        let (p, f) = l.split_once('|').expect("the format has a bar");
        (p.split(' ').next().unwrap_or_default().to_owned(), f.to_owned())
    };
    text.lines().filter(|l| !l.is_empty()).map(split).collect()
}

#[test]
fn small_crates_stay_small() {
    // gguf-rs turns on serde_json's arbitrary_precision, which changes how manifests parse.
    let cases: [(&str, &[&str]); 6] = [
        ("conpet-formats", &["candle", "tokio", "hyper", "gguf-rs", "tokenizers", "clap", "anyhow", "rayon"]),
        ("conpet-fetch", &["candle", "tokio", "hyper", "clap", "anyhow", "rayon"]),
        ("conpet-program", &["candle", "tokio", "hyper", "gguf-rs", "tokenizers", "anyhow", "rayon"]),
        ("conpet-runtime", &["candle", "tokio", "hyper", "gguf-rs", "tokenizers"]),
        ("conpet-tools", &["candle", "tokio", "hyper", "tokenizers", "conpet-runtime", "conpet-trainer"]),
        ("conpet-trainer", &["tokio", "hyper", "gguf-rs"]),
    ];
    for (package, banned) in cases {
        let tree = tree(package, &[]);
        assert!(tree.iter().any(|(n, _)| n == "serde_json"), "the tree of {package} was not read");
        for (name, features) in tree {
            assert!(!banned.iter().any(|b| name.starts_with(b)), "{package} must not be built from {name}");
            let precise = package != "conpet-tools" && name == "serde_json" && features.contains("arbitrary_precision");
            assert!(!precise, "{package} must not turn on serde_json/arbitrary_precision");
        }
    }
}

/// A program that embeds the engine does not get the command line with it.
#[test]
fn the_engine_stands_without_its_program() {
    let built =
        |options: &[&str]| -> Vec<String> { tree("conpet-runtime", options).into_iter().map(|p| p.0).collect() };
    let programs = ["clap", "conpet-program", "conpet-fetch", "ureq", "rustls", "signal-hook", "ctrlc", "anyhow"];
    let library = built(&["--no-default-features"]);
    assert!(library.contains(&"conpet-formats".to_owned()), "the tree was not read: {library:?}");
    for package in library {
        assert!(!programs.contains(&package.as_str()), "the engine alone must not be built from {package}");
    }
    let has = |options: &[&str], package: &str| built(options).contains(&package.to_owned());
    assert!(has(&[], "clap") && has(&[], "ureq"), "the program has a command line, and fetches bases");
    let alone = ["--no-default-features", "--features", "cli"];
    assert!(has(&alone, "clap") && !has(&alone, "ureq"), "the program can be built without HTTP");
}
