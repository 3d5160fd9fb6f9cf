//! The fuzz targets under plain `cargo test`: the corpus of hostile files, whatever a fuzzer has found,
//! and a number of recipes drawn from a seed.
//!
//! `CONPET_FUZZ=N` runs N recipes of each target in place of the few of CI; `CONPET_SEEDS=DIR` writes the
//! inputs that libFuzzer begins with (`tests/fuzz`).

use super::case::{Case, Kind};
use crate::{recipe, replay, targets};
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
        replay::found(name, run);
    }
}

#[test]
fn targets_survive_recipes() {
    for (name, run) in targets::ALL {
        replay::recipes(name, run, FEW);
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
        "import" => &[Kind::Module, Kind::Gguf],
        _ => &[],
    }
}

fn seeds(target: &str, inputs: &[Vec<u8>]) {
    let Some(dir) = std::env::var_os("CONPET_SEEDS").map(|d| PathBuf::from(d).join(target)) else { return };
    std::fs::create_dir_all(&dir).unwrap();
    for (i, input) in inputs.iter().enumerate() {
        std::fs::write(dir.join(format!("{i:03}")), input).unwrap();
    }
}
