//! The bodies of the fuzz targets, for `fuzz_targets/`.

#[allow(dead_code, reason = "made for the corpus of hostile files; the targets use some of it")]
#[path = "../../../formats/tests/hostile/forge.rs"]
mod forge;
#[allow(dead_code, reason = "the tests also write seeds")]
mod recipe;
#[path = "targets.rs"]
mod targets;

/// Runs the target of this name.
///
/// # Panics
/// If a promise is broken; or if there is no such target.
pub fn run(target: &str, data: &[u8]) {
    let found = targets::ALL.iter().find(|(name, _)| *name == target);
    (found.expect("a target of this name").1)(data);
}
