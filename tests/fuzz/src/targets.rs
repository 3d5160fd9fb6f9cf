//! The fuzz targets: for each reader a function of bytes, which panics if a promise is broken.
//!
//! `fuzz_targets/` runs them under libFuzzer, and `formats/tests/hostile/fuzz.rs` under plain `cargo test`. Two
//! more need other crates of the workspace: `inspector` (`tools/tests/fuzz.rs`) and `tokenizer` (`runtime/tests/fuzz.rs`).

pub(crate) mod bundle;
pub(crate) mod gguf;
pub(crate) mod import;
pub(crate) mod manifest;
pub(crate) mod module;
pub(crate) mod selector;
pub(crate) mod template;

/// All targets, by the name of their corpus.
pub(crate) const ALL: [(&str, fn(&[u8])); 7] = [
    ("bundle", bundle::run),
    ("manifest", manifest::run),
    ("module", module::run),
    ("gguf", gguf::run),
    ("selector", selector::run),
    ("template", template::run),
    ("import", import::run),
];
