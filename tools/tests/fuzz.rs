//! The fuzz target `inspector` under plain `cargo test`; `docs/security.md`.

#![allow(clippy::print_stdout, reason = "figures, for those who run with --nocapture")]

#[allow(dead_code, reason = "made for the corpus of hostile files; the target uses some of it")]
#[path = "../../formats/tests/hostile/forge.rs"]
mod forge;
#[path = "../../tests/fuzz/src/inspector.rs"]
mod inspector;
#[allow(dead_code, reason = "other tests also write seeds")]
#[path = "../../tests/fuzz/src/recipe.rs"]
mod recipe;
#[path = "../../tests/fuzz/src/replay.rs"]
mod replay;
#[allow(dead_code, reason = "the target uses what spoils bundles and bases")]
#[path = "../../tests/fuzz/src/targets.rs"]
mod targets;

#[test]
fn the_inspector_survives_spoiled_files() {
    for file in [forge::bundle_bytes(), forge::base(), &forge::bundle_bytes()[..12_288], b"", b"x"] {
        inspector::run(&recipe::of_file(file));
        inspector::run(&[&[2], file].concat());
    }
    replay::found("inspector", inspector::run);
    replay::recipes("inspector", inspector::run, 300);
}
