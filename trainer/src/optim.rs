//! AdamW with accessible state, so that a run can be stopped and continued bit for bit.
//!
//! candle's optimizer keeps its moments private and in the parameter's type, and has no parameter groups.

use crate::nn::numbers;
use candle_core::{Result, Tensor, Var, bail};
use std::collections::BTreeMap;

/// Hyper-parameters (Loshchilov & Hutter 2019).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the denominator, to keep the step finite.
    pub eps: f32,
    /// Decoupled weight decay.
    pub weight_decay: f32,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }
}

/// Which values of a parameter a step does not change, neither by gradient nor by decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// None: all are trained.
    None,
    /// All.
    All,
    /// This many of the first rows.
    Rows(usize),
    /// This many of the first columns.
    Columns(usize),
}

impl Held {
    /// Whether the value at index `i` of a parameter with rows of `width` values is held.
    pub fn holds(self, i: usize, width: usize) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Rows(n) => i < n * width,
            Self::Columns(n) => i % width < n,
        }
    }
}

/// One parameter with its moments, all `f32`.
#[derive(Debug, Clone)]
pub struct Param {
    /// The variable.
    pub var: Var,
    /// Factor on the learning rate.
    pub lr: f32,
    /// First moment.
    pub m: Vec<f32>,
    /// Second moment.
    pub v: Vec<f32>,
    /// The values that the next step does not change.
    pub held: Held,
}

impl Param {
    /// Values in a row.
    fn width(&self) -> usize {
        self.var.dims()[1..].iter().product()
    }
}

/// Parameters by name; the order of names is the order of every sum.
#[derive(Debug, Clone, Default)]
pub struct AdamW {
    /// The hyper-parameters.
    pub config: AdamWConfig,
    /// All parameters.
    pub params: BTreeMap<String, Param>,
    /// Number of steps taken.
    pub step: u64,
}

impl AdamW {
    /// An optimizer without parameters.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, ..Self::default() }
    }

    /// Adds a parameter with zero moments.
    pub fn add(&mut self, name: String, var: Var, lr: f32) {
        let n = var.elem_count();
        self.params.insert(name, Param { var, lr, m: vec![0.0; n], v: vec![0.0; n], held: Held::None });
    }

    /// Number of trained parameters.
    pub fn trainable(&self) -> usize {
        self.params.values().map(|p| (0..p.m.len()).filter(|i| !p.held.holds(*i, p.width())).count()).sum()
    }

    /// One step with global-norm clipping; returns the norm before clipping.
    ///
    /// # Errors
    /// If a gradient is missing or not finite; then nothing has changed.
    pub fn step(&mut self, grads: &BTreeMap<String, Vec<f32>>, lr: f32, clip: f32) -> Result<f32> {
        let mut norm = 0.0f64;
        for (name, p) in self.params.iter().filter(|(_, p)| p.held != Held::All) {
            let Some(g) = grads.get(name) else { bail!("no gradient reached {name}") };
            let free = g.iter().enumerate().filter(|(i, _)| !p.held.holds(*i, p.width()));
            norm += free.map(|(_, v)| f64::from(*v) * f64::from(*v)).sum::<f64>();
        }
        let norm = norm.sqrt() as f32;
        if !norm.is_finite() {
            bail!("the gradient's norm is {norm}");
        }
        let shrink = if clip > 0.0 && norm > clip { clip / norm } else { 1.0 };
        self.step += 1;
        let c = self.config;
        let (fix1, fix2) = (1.0 - c.beta1.powi(self.step as i32), 1.0 - c.beta2.powi(self.step as i32));
        for (name, p) in self.params.iter_mut().filter(|(_, p)| p.held != Held::All) {
            let mut w = numbers(p.var.as_tensor())?;
            let (rate, held, width) = (lr * p.lr, p.held, p.width());
            let all = w.iter_mut().zip(&mut p.m).zip(&mut p.v).zip(&grads[name]);
            for (_, (((w, m), v), g)) in all.enumerate().filter(|(i, _)| !held.holds(*i, width)) {
                let g = g * shrink;
                *m = c.beta1 * *m + (1.0 - c.beta1) * g;
                *v = c.beta2 * *v + (1.0 - c.beta2) * g * g;
                *w -= rate * ((*m / fix1) / ((*v / fix2).sqrt() + c.eps) + c.weight_decay * *w);
            }
            p.var.set(&Tensor::from_vec(w, p.var.shape(), p.var.device())?)?;
        }
        Ok(norm)
    }
}

/// The factor on the learning rate at a step (counted from 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// Always 1 after warm-up.
    Constant,
    /// Half a cosine from 1 down to 0 after warm-up (Loshchilov & Hutter 2017).
    Cosine,
}

impl Schedule {
    /// Linear warm-up over `warmup` steps, then the schedule to `total`.
    pub fn factor(self, step: u64, warmup: u64, total: u64) -> f32 {
        if step < warmup {
            return (step + 1) as f32 / warmup as f32;
        }
        match self {
            Self::Constant => 1.0,
            Self::Cosine => {
                let done = (step - warmup) as f32 / (total.saturating_sub(warmup)).max(1) as f32;
                0.5 * (1.0 + (std::f32::consts::PI * done.min(1.0)).cos())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn first_step_and_clipping_match_the_formula() {
        let var = Var::from_tensor(&Tensor::from_slice(&[1.0f32, -2.0], 2, &Device::Cpu).unwrap()).unwrap();
        let mut o = AdamW::new(AdamWConfig { weight_decay: 0.1, ..AdamWConfig::default() });
        o.add("w".into(), var.clone(), 1.0);
        let g = BTreeMap::from([("w".into(), vec![30.0f32, -40.0])]);
        assert_eq!(o.step(&g, 0.01, 1.0).unwrap(), 50.0);
        // The first Adam step is lr · sign(g), plus decay lr · 0.1 · w.
        let w = var.to_vec1::<f32>().unwrap();
        assert!((w[0] - (1.0 - 0.01 - 0.001)).abs() < 1e-6 && (w[1] - (-2.0 + 0.01 + 0.002)).abs() < 1e-6, "{w:?}");
        // Clipped to norm 1: g = (0.6, -0.8).
        assert!((o.params["w"].m[0] - 0.06).abs() < 1e-7);
        let nan = BTreeMap::from([("w".into(), vec![f32::NAN, 0.0])]);
        assert!(o.step(&nan, 0.01, 1.0).is_err() && o.step(&BTreeMap::new(), 0.01, 1.0).is_err());
        assert_eq!((var.to_vec1::<f32>().unwrap(), o.step), (w, 1), "a refused step changes nothing");
    }

    #[test]
    fn what_is_held_neither_moves_nor_decays_nor_counts() {
        let matrix =
            || Var::from_tensor(&Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap()).unwrap();
        let mut o = AdamW::new(AdamWConfig::default());
        for (name, held) in [("all", Held::All), ("columns", Held::Columns(2)), ("rows", Held::Rows(1))] {
            o.add(name.into(), matrix(), 1.0);
            o.params.get_mut(name).unwrap().held = held;
        }
        assert_eq!(o.trainable(), 2 + 3);
        let g: BTreeMap<_, _> = ["all", "columns", "rows"].map(|n| (n.to_owned(), vec![1.0; 6])).into();
        assert!((o.step(&g, 0.1, 0.0).unwrap() - 5f32.sqrt()).abs() < 1e-6);
        let moved =
            |n: &str| numbers(o.params[n].var.as_tensor()).unwrap().iter().map(|v| *v != 1.0).collect::<Vec<_>>();
        assert_eq!(moved("all"), [false; 6]);
        assert_eq!(moved("columns"), [false, false, true, false, false, true]);
        assert_eq!(moved("rows"), [false, false, false, true, true, true]);
    }

    #[test]
    fn schedules() {
        let s = |k: Schedule, i| k.factor(i, 4, 12);
        assert_eq!([s(Schedule::Constant, 0), s(Schedule::Constant, 3), s(Schedule::Constant, 9)], [0.25, 1.0, 1.0]);
        assert!((s(Schedule::Cosine, 8) - 0.5).abs() < 1e-6 && s(Schedule::Cosine, 12).abs() < 1e-6);
    }
}
