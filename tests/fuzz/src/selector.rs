//! Fuzzes selectors' payloads, with a feature and tokens to score. An accepted one gives every input finite
//! scores, weights that sum to 1, and the same order as sums in `f64`.

use super::module;
use crate::forge::{self, HIDDEN, TASKS};
use crate::recipe;
use conpet_formats::mmap::Mapped;
use conpet_formats::novelty::{self, Novelty};
use conpet_formats::selector::{BIAS, CLASS_TASK, Scorer, SelectorKind, WEIGHT, decide};
use conpet_formats::tensors::{Tensors, TensorsWriter};
use conpet_formats::{hidden, ngrams};

pub(crate) fn run(data: &[u8]) {
    let file = match recipe::raw(data) {
        Some(file) => file.to_vec(),
        None => module::spoiled(data, &[forge::selector(TASKS), full(), random(), learned()]),
    };
    let map = Mapped::from_vec(file.clone());
    for kind in [SelectorKind::Lda, SelectorKind::Conpet] {
        if let Ok(s) = Scorer::load(kind, map.clone(), 0..file.len(), TASKS, HIDDEN) {
            scores(&s, data);
        }
    }
}

fn scores(s: &Scorer, data: &[u8]) {
    // The feature is made from the input too, with values from -127 to 128.
    let byte = |i: usize| data.get(i % data.len().max(1)).copied().unwrap_or_default();
    let feature: Vec<f32> = (0..s.dim).map(|i| f32::from(byte(i)) - 127.0).collect();
    let tokens: Vec<u32> = data.iter().map(|b| u32::from(*b) % 10).collect();
    let x = match &s.hidden {
        None => feature,
        Some(h) => {
            let rows = h.weight.chunks_exact(4 * h.dim).map(|row| {
                let products = row.chunks_exact(4).zip(&feature);
                products.map(|(w, v)| f32::from_le_bytes(w.try_into().unwrap()) * v).sum::<f32>()
            });
            let mut out: Vec<f32> = rows.collect();
            h.activate(&mut out);
            out
        }
    };
    let payload = Tensors::parse(&s.map).unwrap();
    let weight = payload.get(WEIGHT).unwrap().to_f32();
    let states: Vec<f32> = weight
        .chunks_exact(x.len())
        .zip(&s.bias)
        .map(|(row, b)| {
            (row.iter().zip(&x).map(|(w, v)| f64::from(*w) * f64::from(*v)).sum::<f64>() + f64::from(*b)) as f32
        })
        .collect();
    let mut all = states.clone();
    let background = s.ngrams.as_ref().map_or(0.0, |n| n.add_scores(&tokens, &mut all));
    assert!(all.iter().all(|v| v.is_finite()) && background.is_finite(), "{all:?} {background}");
    let novelty = s.novelty.as_ref().map_or(0.0, |n| n.of(&states, &all, background));
    assert!(!novelty.is_nan());
    let d = decide(all.clone(), &s.class_task, TASKS, 1.0, 0.1);
    assert!((d.task_weight.iter().sum::<f32>() - 1.0).abs() < 1e-3, "{:?}", d.task_weight);
    assert!(!d.margin.is_nan() && d.entropy.is_finite() && d.novelty.is_finite());
    // The task of the best class weighs at least as much as that class.
    let best = (0..all.len()).max_by(|a, b| all[*a].total_cmp(&all[*b])).unwrap();
    assert!(d.task_weight[s.class_task[best]] + 1e-3 >= d.class_log_posterior[best].exp());
}

/// A good selector's weights for features of length `dim`.
fn weights(dim: usize) -> TensorsWriter<'static> {
    let mut w = TensorsWriter::new();
    let n = 2 * TASKS;
    w.add_f32(WEIGHT, &[n, dim], &(0..n * dim).map(|i| (i % 5) as f32 - 2.0).collect::<Vec<_>>()).unwrap();
    w.add_f32(BIAS, &[n], &[0.25; 2 * TASKS]).unwrap();
    w.add_i32(CLASS_TASK, &[n], &[0, 0, 1, 1]).unwrap();
    w
}

/// A good payload with n-grams and novelty.
fn full() -> Vec<u8> {
    let mut w = weights(HIDDEN);
    w.add_i32(ngrams::KEYS, &[3, 2], &[-2, 7, -1, 7, 7, 8]).unwrap();
    w.add_i32(ngrams::FIRST, &[4], &[0, 1, 2, 4]).unwrap();
    w.add_i32(ngrams::CLASSES, &[4], &[0, 3, 1, 2]).unwrap();
    w.add_i32(ngrams::COUNTS, &[4], &[1, 2, 1, 9]).unwrap();
    w.add_i32(ngrams::TOTALS, &[4], &[3, 10, 9, 2]).unwrap();
    w.add_f32(ngrams::SCALE, &[2], &[2.0, 0.5]).unwrap();
    Novelty::new(vec![1.0; 4], vec![0.5; 10], 0.5).write(&mut w).unwrap();
    assert!(w.finish().unwrap().windows(13).any(|b| b == novelty::LIMIT.as_bytes()));
    w.finish().unwrap()
}

/// A good payload with a random layer.
fn random() -> Vec<u8> {
    let mut w = weights(8);
    hidden::Hidden::write_random(&mut w, 7, 8, &[0.5; HIDDEN], &[2.0; HIDDEN]).unwrap();
    w.finish().unwrap()
}

/// A good payload with a learned layer.
fn learned() -> Vec<u8> {
    let mut w = weights(3);
    w.add_f32(hidden::WEIGHT, &[3, HIDDEN], &[0.5; 3 * HIDDEN]).unwrap();
    w.add_f32(hidden::BIAS, &[3], &[0.5; 3]).unwrap();
    w.finish().unwrap()
}
