//! Training of `linear` and `mlp`: multinomial logistic regression on features, with or without a
//! hidden layer, over all classes so far.
//!
//! A batch draws classes uniformly and then a row of each, so that a class with a few remembered rows counts as
//! much as a new one with all its rows. The number of steps is fixed, so that a task costs the same however
//! many came before. It is retrained for each task, on standardised features; the standardisation is folded
//! into the weights.

use super::calibrate;
use super::fitting::{Fit, Scores, earlier, feature_dim, standard};
use super::memory::Memory;
use crate::nn::matmul::{View, matmul};
use crate::nn::numbers;
use crate::optim::{AdamW, AdamWConfig, Schedule};
use crate::rng::Stream;
use crate::services::Services;
use candle_core::{Device, Tensor, Var};
use conpet_formats::bundle::Draft;
use conpet_formats::head::log_softmax;
use conpet_formats::hidden;
use conpet_formats::tensors::TensorsWriter;
use conpet_formats::{Code, Error, Result};
use std::collections::BTreeMap;

/// Rows in a batch.
const BATCH: usize = 128;
/// Most multiplications of a product that runs on a single thread.
const SMALL: usize = 1 << 22;
/// Peak learning rate, which decays by half a cosine.
const LR: f32 = 3e-3;

/// A trained network.
#[derive(Debug, Clone, PartialEq)]
pub struct Net {
    /// Weight `[size, dim]` and bias `[size]` of the hidden layer, if there is one.
    pub hidden: Option<(Vec<f32>, Vec<f32>)>,
    /// The scores, which read the hidden layer or else the features.
    pub scores: Scores,
}

/// Fits a selector with `units` hidden units (0 is linear) on memory and new rows.
pub(super) fn fit(services: &mut Services<'_>, draft: &mut Draft, new: &Fit<'_>, units: usize) -> Result<bool> {
    let (dim, seed) = (feature_dim(services), services.settings().training.seed);
    let before = earlier(services, draft, new)?.map(|x| x.1);
    let mut memory = match before {
        Some(carried) => Memory::from_payload(carried, dim).map_err(|e| e.in_section("selector memory"))?,
        None => Memory::default(),
    };
    let first: usize = services.tasks()[..new.task].iter().map(crate::stream::Task::classes).sum();
    let classes: Vec<usize> = new.train.classes.iter().map(|c| first + c).collect();
    let mut rows = memory.clone();
    rows.rows.extend(&new.train.features);
    rows.classes.extend(&classes);
    let total = first + services.tasks()[new.task].classes();
    let net = train(&rows, dim, total, units, new.common.selector_steps, seed)?;
    let mut payload = net.scores.payload()?;
    if let Some((weight, bias)) = &net.hidden {
        payload.add_f32(hidden::WEIGHT, &[bias.len(), dim], weight)?;
        payload.add_f32(hidden::BIAS, &[bias.len()], bias)?;
    }
    memory.add(&new.train.features, &classes, new.common.selector_memory, seed);
    let mut kept = TensorsWriter::new();
    memory.write(&mut kept)?;
    calibrate::enter(services, draft, new, payload, kept, before)?;
    Ok(true)
}

/// Trains on rows of features; classes without rows keep a score that never wins.
///
/// # Errors
/// If there are no rows, or a loss is not finite.
pub fn train(rows: &Memory, dim: usize, classes: usize, units: usize, steps: u64, seed: u64) -> Result<Net> {
    let mut of_class = vec![Vec::new(); classes];
    rows.classes.iter().enumerate().for_each(|(i, c)| of_class[*c].push(i));
    let seen: Vec<usize> = (0..classes).filter(|c| !of_class[*c].is_empty()).collect();
    if seen.is_empty() {
        return Err(Error::new(Code::Missing, "there are no rows to train a selector on"));
    }
    let (shift, scale) = standard(&rows.rows, dim);
    let x: Vec<f32> = rows.rows.iter().enumerate().map(|(i, v)| (v - shift[i % dim]) * scale[i % dim]).collect();
    let failed = |e: candle_core::Error| {
        Error::new(Code::NotFinite, format!("training the selector failed: {e}"))
            .hint("look for rows with extreme features")
    };
    let mut optim = parameters(dim, classes, units, seed).map_err(failed)?;
    for step in 0..steps {
        let mut rng = Stream::new(seed, "selector/batch", step);
        let drawn: Vec<usize> = (0..BATCH)
            .map(|_| {
                let mine = &of_class[seen[rng.below(seen.len())]];
                mine[rng.below(mine.len())]
            })
            .collect();
        let batch: Vec<f32> = drawn.iter().flat_map(|i| &x[i * dim..(i + 1) * dim]).copied().collect();
        let truth: Vec<usize> = drawn.iter().map(|i| rows.classes[*i]).collect();
        let lr = LR * Schedule::Cosine.factor(step, steps / 20, steps);
        let grads = gradients(&optim, &batch, dim, &truth).map_err(failed)?;
        optim.step(&grads, lr, 1.0).map_err(failed)?;
    }
    let get = |name: &str| numbers(optim.params[name].var.as_tensor()).map_err(failed);
    let (weight, mut bias) = (get("weight")?, get("bias")?);
    let unseen = (0..classes).filter(|c| of_class[*c].is_empty());
    unseen.for_each(|c| bias[c] = -1e4);
    // The standardisation is folded into the layer that reads the features.
    let fold = |w: Vec<f32>, mut b: Vec<f32>| {
        let w: Vec<f32> = w.iter().enumerate().map(|(i, v)| v * scale[i % dim]).collect();
        let at = |row: &[f32]| row.iter().zip(&shift).map(|(w, m)| f64::from(*w) * f64::from(*m)).sum::<f64>();
        w.chunks_exact(dim).zip(&mut b).for_each(|(row, b)| *b = (f64::from(*b) - at(row)) as f32);
        (w, b)
    };
    Ok(if units == 0 {
        let (weight, bias) = fold(weight, bias);
        Net { hidden: None, scores: Scores { weight, bias } }
    } else {
        let hidden = Some(fold(get("hidden.weight")?, get("hidden.bias")?));
        Net { hidden, scores: Scores { weight, bias } }
    })
}

/// Initial parameters: zero for the scores, uniform in ±√(6 / dim) for a hidden layer (He et al. 2015).
fn parameters(dim: usize, classes: usize, units: usize, seed: u64) -> candle_core::Result<AdamW> {
    let mut optim = AdamW::new(AdamWConfig::default());
    let mut add = |name: &str, v: Vec<f32>| -> candle_core::Result<()> {
        let n = v.len();
        optim.add(name.into(), Var::from_tensor(&Tensor::from_vec(v, n, &Device::Cpu)?)?, 1.0);
        Ok(())
    };
    let width = if units == 0 { dim } else { units };
    add("weight", vec![0.0; classes * width])?;
    add("bias", vec![0.0; classes])?;
    if units > 0 {
        let mut rng = Stream::new(seed, "selector/init", 0);
        add("hidden.weight", rng.symmetric(units * dim, (6.0 / dim as f32).sqrt()))?;
        add("hidden.bias", vec![0.0; units])?;
    }
    Ok(optim)
}

/// Gradients of the mean cross-entropy of a batch `x [n, dim]`.
fn gradients(optim: &AdamW, x: &[f32], dim: usize, truth: &[usize]) -> candle_core::Result<BTreeMap<String, Vec<f32>>> {
    // Waking threads for a small product costs more than the product, most of all on a busy machine.
    let largest = optim.params.values().map(|p| p.m.len()).max().unwrap_or(0);
    let threads = if largest * truth.len() < SMALL { 1 } else { rayon::current_num_threads() };
    let get = |name: &str| optim.params.get(name).map(|p| numbers(p.var.as_tensor())).transpose();
    let need = |name: &str| get(name).map(Option::unwrap_or_default);
    let (weight, bias, hidden) = (need("weight")?, need("bias")?, get("hidden.weight")?);
    let layer = match &hidden {
        None => None,
        Some(w) => {
            let b = need("hidden.bias")?;
            let mut h = matmul(View::new(x, dim), View::new(w, dim).t(), threads);
            h.chunks_exact_mut(b.len()).for_each(|r| r.iter_mut().zip(&b).for_each(|(v, b)| *v = (*v + b).max(0.0)));
            Some(h)
        }
    };
    let (inner, classes, n) = (layer.as_deref().unwrap_or(x), bias.len(), truth.len());
    let width = inner.len() / n;
    // d loss / d logits = (softmax - one-hot) / n.
    let mut d = matmul(View::new(inner, width), View::new(&weight, width).t(), threads);
    for (row, c) in d.chunks_exact_mut(classes).zip(truth) {
        row.iter_mut().zip(&bias).for_each(|(v, b)| *v += b);
        log_softmax(row, 1.0);
        row.iter_mut().for_each(|v| *v = v.exp() / n as f32);
        row[*c] -= 1.0 / n as f32;
    }
    let columns = |d: &[f32], width: usize| -> Vec<f32> {
        (0..width).map(|i| d.iter().skip(i).step_by(width).sum::<f32>()).collect()
    };
    let mut out = BTreeMap::from([
        ("weight".to_owned(), matmul(View::new(&d, classes).t(), View::new(inner, width), threads)),
        ("bias".to_owned(), columns(&d, classes)),
    ]);
    if let Some(h) = &layer {
        let mut back = matmul(View::new(&d, classes), View::new(&weight, width), threads);
        back.iter_mut().zip(h).for_each(|(g, h)| *g = if *h > 0.0 { *g } else { 0.0 });
        out.insert("hidden.weight".into(), matmul(View::new(&back, width).t(), View::new(x, dim), threads));
        out.insert("hidden.bias".into(), columns(&back, width));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradients_match_finite_differences() {
        let (dim, classes, n) = (3, 4, 5);
        let x: Vec<f32> = (0..n * dim).map(|i| (i as f32 * 1.3).sin()).collect();
        let truth = [0, 3, 1, 1, 2];
        for units in [0, 6] {
            let optim = parameters(dim, classes, units, 1).unwrap();
            // Away from zero, where all classes would be equal.
            for p in optim.params.values() {
                let v: Vec<f32> = (0..p.m.len()).map(|i| 0.5 * (i as f32 * 0.7 + 0.3).cos()).collect();
                p.var.set(&Tensor::from_vec(v, p.m.len(), &Device::Cpu).unwrap()).unwrap();
            }
            let loss = |optim: &AdamW| -> f64 {
                let get = |name: &str| numbers(optim.params[name].var.as_tensor()).unwrap();
                let linear = |w: &[f32], b: &[f32], x: &[f32]| -> Vec<f32> {
                    w.chunks_exact(x.len())
                        .zip(b)
                        .map(|(w, b)| w.iter().zip(x).map(|(w, x)| w * x).sum::<f32>() + b)
                        .collect()
                };
                let cost = |(x, c): (&[f32], &usize)| {
                    let mut x = x.to_vec();
                    if units > 0 {
                        x = linear(&get("hidden.weight"), &get("hidden.bias"), &x);
                        x.iter_mut().for_each(|v| *v = v.max(0.0));
                    }
                    let mut y = linear(&get("weight"), &get("bias"), &x);
                    log_softmax(&mut y, 1.0);
                    -f64::from(y[*c])
                };
                x.chunks_exact(dim).zip(&truth).map(cost).sum::<f64>() / n as f64
            };
            let grads = gradients(&optim, &x, dim, &truth).unwrap();
            for (name, g) in &grads {
                let start = numbers(optim.params[name].var.as_tensor()).unwrap();
                for i in 0..start.len() {
                    let at = |by: f32| {
                        let mut v = start.clone();
                        v[i] += by;
                        let t = Tensor::from_vec(v, start.len(), &Device::Cpu).unwrap();
                        optim.params[name].var.set(&t).unwrap();
                        loss(&optim)
                    };
                    let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
                    at(0.0);
                    // f32 losses, and a kink of the hidden layer may lie within the step.
                    assert!((slope - f64::from(g[i])).abs() < 2e-3, "{name}[{i}]: {slope} for {}", g[i]);
                }
            }
        }
    }
}
