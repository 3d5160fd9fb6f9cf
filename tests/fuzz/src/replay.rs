//! Runs a target under plain `cargo test`: on recipes drawn from a seed, and on inputs that a fuzzer has found.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::path::{Path, PathBuf};

/// Runs `few` recipes of a target, or as many as `CONPET_FUZZ` says.
///
/// # Panics
/// If one breaks a promise, with the input.
pub(crate) fn recipes(name: &str, run: fn(&[u8]), few: usize) {
    let n = std::env::var("CONPET_FUZZ").ok().map_or(few, |n| n.parse().expect("CONPET_FUZZ is a number"));
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

/// Runs the inputs that were kept because they once broke a promise.
pub(crate) fn found(name: &str, run: fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/found").join(name);
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut files: Vec<PathBuf> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    for file in files {
        println!("{}", file.display());
        run(&std::fs::read(file).unwrap());
    }
}
