//! Weight products by type and batch, on every instruction set this processor has.
//!
//! `cargo bench -p conpet-runtime`. One token reads each weight once from memory (bytes a second
//! count); a batch decodes each tile once and multiplies (products a second count).

use conpet_formats::model_spec::Activation;
use conpet_formats::quant::{QuantType, quantize};
use conpet_runtime::kernels::{Kernels, MatrixRef};
use conpet_runtime::threads::Threads;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;

/// The feed-forward entry of SmolLM2-135M.
const ROWS: usize = 1536;
const COLS: usize = 576;

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| (i as f32 * 0.37).sin()).collect()
}

fn products(c: &mut Criterion) {
    let threads = Threads::new(0);
    let numbers = wave(ROWS * COLS);
    for ty in [QuantType::Q4_0, QuantType::Q4_1, QuantType::Q8_0, QuantType::F16, QuantType::F32] {
        let Ok(bytes) = quantize(ty, &numbers) else { continue };
        let w = MatrixRef { ty, rows: ROWS, cols: COLS, data: &bytes };
        for n in [1usize, 8, 64, 256] {
            let mut group = c.benchmark_group(format!("{} n={n}", ty.name()));
            group.throughput(if n == 1 {
                Throughput::Bytes(bytes.len() as u64)
            } else {
                Throughput::Elements((n * ROWS * COLS) as u64)
            });
            let x = wave(n * COLS);
            let mut y = vec![0.0; n * ROWS];
            for k in Kernels::all().into_iter().filter(|k| k.name() != "naive" || n <= 8) {
                group.bench_function(BenchmarkId::from_parameter(k.name()), |b| {
                    b.iter(|| k.matmul(&threads, w, black_box(&x), &mut y, n));
                });
            }
        }
    }
}

fn vectors(c: &mut Criterion) {
    let (a, b) = (wave(COLS), wave(COLS));
    let mut group = c.benchmark_group("vectors of 576");
    for k in Kernels::all() {
        group.bench_function(BenchmarkId::new("dot_f32", k.name()), |bench| {
            bench.iter(|| k.dot_f32(black_box(&a), black_box(&b)));
        });
        let mut out = wave(COLS);
        group.bench_function(BenchmarkId::new("softmax", k.name()), |bench| {
            bench.iter(|| k.softmax(black_box(&mut out)));
        });
        group.bench_function(BenchmarkId::new("gate_mul", k.name()), |bench| {
            bench.iter(|| k.gate_mul(Activation::Silu, black_box(&mut out), &b));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).measurement_time(std::time::Duration::from_secs(2));
    targets = products, vectors
}
criterion_main!(benches);
