//! Elastic weight consolidation (Kirkpatrick et al. 2017, arXiv 1612.00796): a quadratic penalty holds the
//! parameters that matter to earlier tasks.
//!
//! `L = CE + λ/2 · Σ_s Σ_i F_s,i (θ_i - θ_s,i)²` over all earlier tasks s, with the Fisher diagonal `F_s` and
//! the parameters `θ_s` at the end of each. This is the form with separate penalties, not the online one. A sum
//! of such penalties equals, up to a constant, one penalty of strength `Σ F_s` around `Σ F_s θ_s / Σ F_s`, so
//! only that is kept, whatever the number of tasks.

use super::shared::Shared;
use crate::fit::{Gradients, Recipe, Trained};
use crate::nn::numbers;
use crate::optim::Param;
use crate::rng::Stream;
use crate::services::{Kept, Lesson, Services, Stage};
use crate::settings::range::{at_least_one, not_negative};
use crate::settings::settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use std::collections::BTreeMap;

settings! { "ewc" Settings Flags {
    /// ewc: strength of the penalty on changing parameters that matter to earlier tasks.
    ewc_lambda: f64 = 1000.0, not_negative();
    /// ewc: rows of each task that its Fisher information is estimated on.
    fisher_rows: usize = 256, at_least_one();
}}

/// Trains the shared module on the next task, then measures which parameters matter to it.
pub fn learn(services: &mut Services<'_>, own: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let s = Shared::begin(services, stage.task)?;
    let before = if s.t > 0 { services.kept(s.t - 1)? } else { Kept::new() };
    let ewc = Ewc { lambda: own.ewc_lambda as f32, springs: before };
    let Some(trained) = s.fit(services, &ewc)? else { return Ok(None) };
    let rows = s.rows();
    let mut some: Vec<usize> = (0..s.data.prompts.len()).collect();
    Stream::new(services.settings().training.seed, &format!("{}/fisher-rows", s.name), 0).shuffle(&mut some);
    some.truncate(own.fisher_rows);
    let fisher = services.fisher(&Lesson { start: Some(&trained), ..s.lesson(&rows, &ewc) }, &some)?;
    services.keep(s.t, &ewc.joined(&fisher, &trained))?;
    s.finish(services, stage.draft, &trained).map(Some)
}

const STRENGTH: &str = "strength.";
const CENTRE: &str = "centre.";

/// The penalty: `strength.<name>` and `centre.<name>` of each parameter.
struct Ewc {
    lambda: f32,
    springs: Kept,
}

impl Ewc {
    fn of(&self, name: &str) -> Option<(&[f32], &[f32])> {
        let get = |kind: &str| self.springs.get(&format!("{kind}{name}")).map(|x| x.1.as_slice());
        get(STRENGTH).zip(get(CENTRE))
    }

    /// The penalty so far joined with that of one more task. New rows of a head had none before.
    fn joined(&self, fisher: &Gradients, trained: &Trained) -> Kept {
        let mut out = Kept::new();
        for (name, f) in fisher {
            let (shape, theta) = &trained.tensors[name];
            let (mut strength, mut centre) = (f.clone(), theta.clone());
            if let Some((old, at)) = self.of(name) {
                for i in 0..old.len() {
                    strength[i] = old[i] + f[i];
                    if strength[i] > 0.0 {
                        centre[i] = (old[i] * at[i] + f[i] * theta[i]) / strength[i];
                    }
                }
            }
            out.insert(format!("{STRENGTH}{name}"), (shape.clone(), strength));
            out.insert(format!("{CENTRE}{name}"), (shape.clone(), centre));
        }
        out
    }
}

impl Recipe for Ewc {
    fn name(&self) -> String {
        format!("ewc {}", self.lambda)
    }

    fn gradient(&self, params: &BTreeMap<String, Param>, grads: &mut Gradients) -> candle_core::Result<f32> {
        let mut sum = 0.0;
        for (name, grad) in grads {
            let Some((strength, centre)) = self.of(name) else { continue };
            let theta = numbers(params[name].var.as_tensor())?;
            for (((g, f), c), x) in grad.iter_mut().zip(strength).zip(centre).zip(&theta) {
                *g += self.lambda * f * (x - c);
                sum += 0.5 * self.lambda * f * (x - c) * (x - c);
            }
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The joined penalty of two tasks has exactly the gradient of the two.
    #[test]
    fn one_spring_pulls_as_the_sum_of_separate_ones() {
        let trained = |v: [f32; 3]| Trained {
            tensors: BTreeMap::from([("w".to_owned(), (vec![3], v.to_vec()))]),
            ..Trained::default()
        };
        let fisher = |v: [f32; 3]| Gradients::from([("w".to_owned(), v.to_vec())]);
        let none = Ewc { lambda: 2.0, springs: Kept::new() };
        let first = Ewc { lambda: 2.0, springs: none.joined(&fisher([1.0, 0.0, 3.0]), &trained([1.0, 2.0, 3.0])) };
        let both = first.joined(&fisher([2.0, 0.0, 1.0]), &trained([4.0, 5.0, -1.0]));
        let (strength, centre) = (&both["strength.w"].1, &both["centre.w"].1);
        for x in [-2.0f32, 0.5, 7.0] {
            for (i, (f, c)) in
                [([1.0f32, 2.0], [1.0f32, 4.0]), ([0.0, 0.0], [2.0, 5.0]), ([3.0, 1.0], [3.0, -1.0])].iter().enumerate()
            {
                let apart: f32 = f.iter().zip(c).map(|(f, c)| f * (x - c)).sum();
                assert!((strength[i] * (x - centre[i]) - apart).abs() < 1e-4);
            }
        }
    }
}
