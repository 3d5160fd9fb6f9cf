//! Runs every read-only command of `conpet-inspect` on a spoiled bundle or base: it ends with a documented
//! code, its output has no control characters that could harm a terminal, its JSON is valid, and no file
//! changes.

use crate::{forge, recipe, targets};
use conpet_tools::ExitStatus;
use std::ffi::OsString;
use std::path::Path;

/// The commands; `@` is the file.
const COMMANDS: [&str; 17] = [
    "show @",
    "show @ --stage 1",
    "tasks @",
    "log @",
    "diff @ 1 2",
    "verify @",
    "verify --full @",
    "verify @ -m base.gguf",
    "tensors @ m0000",
    "tensors @ selector --stage 2",
    "tensors @ stats",
    "gguf @",
    "gguf --cross-check @",
    "hexmap @",
    "status @",
    "signing-text @",
    "verify base.gguf -m @",
];

/// Most text output, in bytes; messages come on top.
const CAP: usize = (1 << 20) + 64;

pub(crate) fn run(data: &[u8]) {
    let json = data.first().is_some_and(|b| b & 2 != 0);
    let file = match recipe::raw(data) {
        Some(file) => file.to_vec(),
        None if data.first().is_some_and(|b| b & 4 != 0) => targets::gguf::spoiled(data),
        None => targets::bundle::spoiled(data),
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("base.gguf"), forge::base()).unwrap();
    std::fs::write(dir.path().join("x"), &file).unwrap();
    for words in COMMANDS {
        check(dir.path(), words, json);
    }
    assert_eq!(std::fs::read(dir.path().join("x")).unwrap(), file, "a command that reads has written");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "a command that reads has left a file");
}

fn check(dir: &Path, words: &str, json: bool) {
    let path = |name: &str| dir.join(name).into_os_string();
    let word = |w: &str| match w {
        "@" => path("x"),
        "base.gguf" => path(w),
        _ => OsString::from(w),
    };
    let args = ["conpet-inspect"].into_iter().chain(json.then_some("--json")).chain(words.split(' ')).map(word);
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let status = conpet_tools::run(args, &mut out, &mut err);
    let [out, err] = [out, err].map(|b| String::from_utf8(b).expect("what is printed is text"));
    for text in [&out, &err] {
        let steers =
            |c: char| c.is_control() && c != '\n' || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        assert!(!text.contains(steers), "{words}: control characters in {text:?}");
    }
    // The machine works, so a failure must be the file's; and its message says what is wrong and what to do.
    assert_ne!(status, ExitStatus::Io, "{words}: {err}");
    assert!(status != ExitStatus::Usage || err.contains("error: ") && err.contains("hint: "), "{words}: {err}");
    if !json {
        assert!(out.len() <= CAP, "{words}: {} bytes", out.len());
    } else if !out.is_empty() && !words.starts_with("signing-text") {
        let value: serde_json::Value = serde_json::from_str(&out).unwrap_or_else(|e| panic!("{words}: {e}: {out}"));
        let schema = value["schema"].as_str().expect("a schema");
        assert!(schema.starts_with("conpet.inspect."), "{schema}");
    }
}
