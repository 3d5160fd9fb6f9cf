//! The bodies of the fuzz targets, for `fuzz_targets/`.

#[allow(dead_code, reason = "made for the corpus of hostile files; the targets use some of it")]
#[path = "../../../formats/tests/hostile/forge.rs"]
mod forge;
mod inspector;
#[allow(dead_code, reason = "the tests also write seeds")]
mod recipe;
#[path = "targets.rs"]
mod targets;
mod tokenizer;

/// Targets that need more than the formats crate.
const MORE: [(&str, fn(&[u8])); 2] = [("inspector", inspector::run), ("tokenizer", tokenizer::run)];

/// Runs the target of this name.
///
/// # Panics
/// If a promise is broken; or if there is no such target.
pub fn run(target: &str, data: &[u8]) {
    let found = targets::ALL.iter().chain(&MORE).find(|(name, _)| *name == target);
    (found.expect("a target of this name").1)(data);
}
