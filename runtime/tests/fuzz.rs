//! The fuzz target `tokenizer` under plain `cargo test`; `docs/security.md`.

#![allow(clippy::print_stdout, reason = "figures, for those who run with --nocapture")]

#[allow(dead_code, reason = "other targets edit text too")]
#[path = "../../tests/fuzz/src/recipe.rs"]
mod recipe;
#[path = "../../tests/fuzz/src/replay.rs"]
mod replay;
#[path = "../../tests/fuzz/src/tokenizer.rs"]
mod tokenizer;

use conpet_formats::tiny::{self, TinyArch, TinyConfig};

#[test]
fn tokenizers_survive_spoiled_tables() {
    for arch in [TinyArch::Llama, TinyArch::Gemma3] {
        let base = tiny::base(&TinyConfig { arch, ..TinyConfig::default() }).unwrap();
        tokenizer::run(&recipe::of_file(&base));
    }
    replay::found("tokenizer", tokenizer::run);
    replay::recipes("tokenizer", tokenizer::run, 1500);
}
