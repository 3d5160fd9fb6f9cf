//! Fuzzes selectors' payloads, with a feature and words to score. An accepted one gives every input finite
//! scores, weights that sum to 1, the same order as sums in `f64`, angles within a cosine's bounds, and a p-value
//! that falls as novelty rises.

use super::module;
use crate::forge::{self, HIDDEN, TASKS};
use crate::recipe;
use conpet_formats::hidden;
use conpet_formats::mmap::Mapped;
use conpet_formats::ngrams::{Ngrams, Table, Words};
use conpet_formats::novelty::{self, Novelty, Root};
use conpet_formats::quant::{QuantType, dequantize};
use conpet_formats::refusal::Refusal;
use conpet_formats::selector::{BIAS, CLASS_TASK, Scorer, SelectorKind, WEIGHT, decide};
use conpet_formats::tensors::{Tensors, TensorsWriter};

pub(crate) fn run(data: &[u8]) {
    let file = match recipe::raw(data) {
        Some(file) => file.to_vec(),
        None => module::spoiled(data, &[forge::selector(TASKS), full(), angles(), random(), learned()]),
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
        None => feature.clone(),
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
    let text = String::from_utf8_lossy(data);
    let words = Words { tokens: &tokens, text: &text };
    let background: f32 = s.ngrams.iter().map(|n| n.add_scores(words, &mut all)).sum();
    assert!(all.iter().all(|v| v.is_finite()) && background.is_finite(), "{all:?} {background}");
    let novelty = s.novelty.as_ref().map_or(0.0, |n| n.of(&states, &all, background));
    assert!(!novelty.is_nan());
    // Limits stand on novelties of any size; without a space they are minus the best score.
    let novelties = match &s.root {
        Some(root) => root.novelties(&states, length(root, &feature), &s.class_task, TASKS),
        None => vec![-all.iter().copied().fold(f32::NEG_INFINITY, f32::max); TASKS],
    };
    assert!(s.root.is_none() || novelties.iter().all(|n| (0.0..=2.0).contains(n)), "{novelties:?}");
    if let Some(refusal) = &s.refusal {
        verdict(refusal, &novelties);
    }
    let d = decide(all.clone(), &s.class_task, TASKS, 1.0, 0.1);
    assert!((d.task_weight.iter().sum::<f32>() - 1.0).abs() < 1e-3, "{:?}", d.task_weight);
    assert!(!d.margin.is_nan() && d.entropy.is_finite() && d.novelty.is_finite());
    // The task of the best class weighs at least as much as that class.
    let best = (0..all.len()).max_by(|a, b| all[*a].total_cmp(&all[*b])).unwrap();
    assert!(d.task_weight[s.class_task[best]] + 1e-3 >= d.class_log_posterior[best].exp());
}

/// `|L⁻¹ (x - μ)|`, as the runtime sums it.
fn length(root: &Root, feature: &[f32]) -> f32 {
    let x: Vec<f32> = feature.iter().zip(&root.mean).map(|(x, m)| x - m).collect();
    let mut square = 0.0;
    for (rows, cols, data) in root.panels() {
        let mut values = vec![0.0; rows.len() * cols];
        dequantize(QuantType::F16, data, &mut values);
        for row in values.chunks_exact(cols) {
            square += row.iter().zip(&x).map(|(r, v)| f64::from(*r) * f64::from(*v)).sum::<f64>().powi(2);
        }
    }
    square.sqrt() as f32
}

fn verdict(refusal: &Refusal, novelties: &[f32]) {
    let fewest = (0..TASKS).map(|t| refusal.rows(t)).min().unwrap();
    assert!((0.0..=1.0).contains(&refusal.share()));
    let mut before = 1.0;
    for more in [0.0, 1.0, 1e6] {
        let further: Vec<f32> = novelties.iter().map(|n| n + more).collect();
        let (p, refused) = refusal.verdict(&further);
        assert!(p * (1 + fewest) as f32 > 0.999 && p <= before, "{p} after {before}, {fewest} rows");
        assert!(!(refused && refusal.unsure().next().is_some()), "refused, though a task promises nothing");
        before = p;
    }
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

/// A table of three n-grams.
fn table(table: Table, w: &mut TensorsWriter<'_>) {
    // Among the text's characters, those of two zeros at the beginning of a word.
    let (first, second) = Table::Characters.grams(Words { tokens: &[], text: "\0\0" })[0];
    let last = if second > 0 { second - 1 } else { second + 1 };
    let keys = match table {
        Table::Tokens => vec![-2, 7, -1, 7, 7, 8],
        Table::Characters if second > 0 => vec![i32::MIN, 0, first, last, first, second],
        Table::Characters => vec![i32::MIN, 0, first, second, first, last],
    };
    w.add_i32(&table.tensor("keys"), &[3, 2], &keys).unwrap();
    w.add_i32(&table.tensor("first"), &[4], &[0, 1, 2, 4]).unwrap();
    w.add_i32(&table.tensor("classes"), &[4], &[0, 3, 1, 2]).unwrap();
    w.add_i32(&table.tensor("counts"), &[4], &[1, 2, 1, 9]).unwrap();
    w.add_i32(&table.tensor("totals"), &[4], &[3, 10, 9, 2]).unwrap();
    w.add_f32(&table.tensor("scale"), &[2], &[2.0, 0.5]).unwrap();
}

/// A good payload of this release, with both tables, a space for angles and limits.
fn angles() -> Vec<u8> {
    let mut w = weights(HIDDEN);
    Table::ALL.into_iter().for_each(|t| table(t, &mut w));
    let root: Vec<f64> = (0..HIDDEN * (HIDDEN + 1) / 2).map(|i| (i % 3) as f64 * 0.25 + 0.125).collect();
    novelty::write(&mut w, &root, &[1.0; HIDDEN], &[0.5, 0.0, 2.0, 1e4]).unwrap();
    let rows = |n: usize| (0..n).map(|i| i as f32 / n as f32).collect();
    Refusal::new(0.05, vec![rows(50), rows(80)]).write(&mut w).unwrap();
    let payload = w.finish().unwrap();
    let all = 0..payload.len();
    let s = Scorer::load(SelectorKind::Lda, Mapped::from_vec(payload.clone()), all, TASKS, HIDDEN).unwrap();
    assert!(s.root.is_some() && s.refusal.is_some() && s.ngrams.iter().map(Ngrams::len).eq([3, 3]));
    payload
}

/// A good payload of earlier releases, with token n-grams and their form of novelty.
fn full() -> Vec<u8> {
    let mut w = weights(HIDDEN);
    table(Table::Tokens, &mut w);
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
