//! What a bundle costs: to open it, to trust a module, to add a stage.
//!
//! `cargo bench -p conpet-formats`; `CONPET_BENCH_DIR=DIR` says where the files go (by default the folder
//! for temporary files). `docs/gates.md` has the figures asked and reached.

#[allow(dead_code, reason = "made for the corpus of hostile files; some of it is used here")]
#[path = "../tests/hostile/forge.rs"]
mod forge;

use conpet_formats::bundle::{Bundle, Draft};
use conpet_formats::feature::{FeatureSpec, Pool, StateNorm};
use conpet_formats::tiny;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use std::path::PathBuf;

const TASKS: usize = 100;

fn folder() -> tempfile::TempDir {
    match std::env::var_os("CONPET_BENCH_DIR").map(PathBuf::from) {
        Some(dir) => tempfile::tempdir_in(dir).unwrap(),
        None => tempfile::tempdir().unwrap(),
    }
}

/// A stage with one more task, whose head has so many mebibytes of numbers.
fn large(d: Draft, name: &str, mib: usize) -> Draft {
    let numbers: Vec<f32> = (0..mib << 18).map(|i| (i % 4093) as f32 / 4096.0).collect();
    let feature = FeatureSpec::single(1, Pool::Mean, StateNorm::Output);
    tiny::with_task(d, name, &["no", "yes"], feature, &numbers, &[0.0, 1.0]).unwrap()
}

/// A bundle of a hundred stages, each with a module, a head, a selector and its statistics.
fn open(c: &mut Criterion) {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    forge::with_task(Draft::new(tiny::no_base(), "dynamic", 1), "task 0").create(&path).unwrap();
    for i in 1..TASKS {
        forge::with_task(Draft::from_bundle(&Bundle::open(&path).unwrap()), &format!("task {i}"))
            .append(&path)
            .unwrap();
    }
    c.bench_function("open a bundle of 100 tasks", |b| b.iter(|| Bundle::open(black_box(&path)).unwrap()));
}

fn first_use(c: &mut Criterion) {
    let dir = folder();
    let path = dir.path().join("b.cpb");
    large(Draft::new(tiny::no_base(), "dynamic", 1), "large", 4).create(&path).unwrap();
    c.bench_function("verify 4 MiB at first use", |b| {
        // Of a bundle just opened: later uses cost nothing.
        b.iter_batched(
            || Bundle::open(&path).unwrap(),
            |bundle| bundle.section(black_box(0)).map(<[u8]>::len).unwrap(),
            BatchSize::PerIteration,
        );
    });
}

fn append(c: &mut Criterion) {
    let dir = folder();
    let (old, path) = (dir.path().join("old.cpb"), dir.path().join("b.cpb"));
    large(Draft::new(tiny::no_base(), "dynamic", 1), "first", 1).create(&old).unwrap();
    let mut group = c.benchmark_group("append");
    group.sample_size(20);
    group.bench_function("8 MiB", |b| {
        b.iter_batched(
            || {
                std::fs::copy(&old, &path).unwrap();
                large(Draft::from_bundle(&Bundle::open(&path).unwrap()), "second", 8)
            },
            |draft| draft.append(&path).unwrap(),
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, open, first_use, append);
criterion_main!(benches);
