//! The fuzz targets under plain `cargo test`: the corpus of hostile files, whatever a fuzzer has found,
//! and a number of recipes drawn from a seed.
//!
//! `CONPET_FUZZ=N` runs N recipes of each target in place of the few of CI; `CONPET_SEEDS=DIR` writes the
//! inputs that libFuzzer begins with (`tests/fuzz`).

use super::case::{Case, Kind};
use crate::recipe;
use crate::targets;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};

/// Recipes of each target in CI.
const FEW: usize = 3500;

#[test]
fn targets_survive_the_corpus_and_what_was_found() {
    let cases = crate::all();
    for (name, run) in targets::ALL {
        let mine: Vec<&Case> = cases.iter().filter(|c| c.sparse.is_none() && kinds(name).contains(&c.kind)).collect();
        assert!(name == "manifest" || mine.len() > 15, "{name} has {} files", mine.len());
        let inputs = mine.iter().map(|c| recipe::of_file(&c.bytes)).chain(std::iter::once(vec![1])).collect::<Vec<_>>();
        inputs.iter().for_each(|i| run(i));
        seeds(name, &inputs);
        for file in found(name) {
            println!("{}", file.display());
            run(&std::fs::read(file).unwrap());
        }
    }
}

#[test]
fn targets_survive_recipes() {
    let n = std::env::var("CONPET_FUZZ").ok().map_or(FEW, |n| n.parse().expect("CONPET_FUZZ is a number"));
    for (name, run) in targets::ALL {
        let mut rng = ChaCha8Rng::seed_from_u64(name.bytes().fold(7, |h, b| h * 31 + u64::from(b)));
        for i in 0..n {
            let mut data = vec![0; 8 + (rng.next_u32() % 120) as usize];
            rng.fill_bytes(&mut data);
            data[0] |= 1;
            let ran = std::panic::catch_unwind(|| run(&data));
            assert!(ran.is_ok(), "{name}: recipe {i} of {n} broke a promise; the input is {data:02x?}");
        }
        println!("{name}: {n} recipes");
    }
}

/// A recipe must be able to make what is accepted and what is not, or the targets see nothing.
#[test]
fn recipes_make_good_files_and_bad_ones() {
    use conpet_formats::bundle::Bundle;
    use conpet_formats::gguf::Gguf;
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut accepted = [0; 2];
    for _ in 0..300 {
        let mut data = vec![0; 24];
        rng.fill_bytes(&mut data);
        let bundle = Bundle::from_bytes(targets::bundle::spoiled(&data), Path::new("x.cpb"));
        accepted[0] += usize::from(bundle.is_ok());
        accepted[1] += usize::from(Gguf::parse(&targets::gguf::spoiled(&data)).is_ok());
    }
    assert!(accepted.iter().all(|n| (5..295).contains(n)), "{accepted:?} of 300 were accepted");
}

/// Which of the corpus a target reads.
fn kinds(target: &str) -> &'static [Kind] {
    match target {
        "bundle" => &[Kind::Bundle, Kind::Whole],
        "module" => &[Kind::Module, Kind::Selector],
        "gguf" => &[Kind::Gguf, Kind::Base],
        "selector" => &[Kind::Selector],
        "template" => &[Kind::Template],
        _ => &[],
    }
}

/// Inputs kept because they once broke a promise.
fn found(target: &str) -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/found").join(target);
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut out: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    out.sort();
    out
}

fn seeds(target: &str, inputs: &[Vec<u8>]) {
    let Some(dir) = std::env::var_os("CONPET_SEEDS").map(|d| PathBuf::from(d).join(target)) else { return };
    std::fs::create_dir_all(&dir).unwrap();
    for (i, input) in inputs.iter().enumerate() {
        std::fs::write(dir.join(format!("{i:03}")), input).unwrap();
    }
}
