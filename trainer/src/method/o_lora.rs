//! O-LoRA (Wang et al. 2023, arXiv 2310.14152): each task is learned in a subspace orthogonal to those of the
//! tasks before.
//!
//! Each task gets a LoRA; the old ones are frozen and all are in force together, so the shared module's rank
//! grows by the rank of `--pet` at each stage: `A = [A_1; ..; A_t]`, `B = [B_1 .. B_t]`. The loss adds
//! `λ · Σ_{s<t} Σ_jk |(A_s A_tᵀ)_jk|` at every site. The head's rows of earlier labels are frozen too, and the
//! loss for the new ones is over the new labels only (the published code has no head: its labels are texts
//! listed in the prompt).

use super::shared::Shared;
use crate::fit::{Gradients, Labelled, Loss, Recipe};
use crate::nn::numbers;
use crate::optim::{Held, Param};
use crate::services::{Services, Stage};
use crate::settings::range::not_negative;
use crate::settings::settings;
use conpet_formats::bundle::Draft;
use conpet_formats::pet::{Part, Pet, PetSpec, lora};
use conpet_formats::{Code, Error, Result};
use std::collections::BTreeMap;

settings! { "o-lora" Settings Flags {
    /// o-lora: weight of the penalty for not being orthogonal to the LoRAs of earlier tasks.
    o_lora_lambda: f64 = 0.5, not_negative();
}}

/// Adds a task's LoRA beside those of the tasks before.
pub fn learn(services: &mut Services<'_>, own: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let mut s = Shared::begin(services, stage.task)?;
    let (pet, rank) = grown(&s.module.pet, s.t + 1).map_err(|e| e.in_section(&s.name))?;
    s.module.pet = pet;
    let recipe = OLora { lambda: own.o_lora_lambda as f32, old: rank * s.t, before: s.before };
    let Some(trained) = s.fit(services, &recipe)? else { return Ok(None) };
    s.finish(services, stage.draft, &trained).map(Some)
}

/// Fails for a module that is not one LoRA.
///
/// # Errors
/// Names the module.
pub fn fits(pet: &PetSpec) -> Result<()> {
    grown(pet, 1).map(drop)
}

/// The spec of `n` such LoRAs side by side, at the same scale; and the rank of one.
fn grown(one: &PetSpec, n: usize) -> Result<(PetSpec, usize)> {
    let [part @ Part { pet: Pet::Lora(lora), .. }] = one.parts() else {
        return Err(Error::new(Code::Unsupported, format!("--method o-lora cannot learn --pet {one}"))
            .hint("it is a method for LoRA: use --pet lora"));
    };
    if lora.rank * n > 4096 {
        return Err(Error::new(Code::Cap, format!("the module would have rank {}", lora.rank * n))
            .hint("o-lora adds a LoRA for each task, up to rank 4096 in all; lower --rank"));
    }
    let pet = Pet::Lora(lora.of_rank(lora.rank * n));
    Ok((PetSpec::new(vec![Part { pet, ..*part }])?, lora.rank))
}

struct OLora {
    lambda: f32,
    /// Total rank of the frozen LoRAs.
    old: usize,
    /// Labels of earlier tasks.
    before: usize,
}

impl Recipe for OLora {
    fn name(&self) -> String {
        format!("o-lora {}", self.lambda)
    }

    fn held(&self, name: &str, _step: u64, _steps: u64) -> Held {
        match lora::split_name(name) {
            _ if self.old == 0 => Held::None,
            Some((_, 0)) => Held::Rows(self.old),
            Some(_) => Held::Columns(self.old),
            None => Held::Rows(self.before),
        }
    }

    fn loss(&self, b: &Labelled<'_>) -> candle_core::Result<Loss> {
        b.cross_entropy(&b.logits(b.features)?, self.before).map(Loss::from)
    }

    fn gradient(&self, params: &BTreeMap<String, Param>, grads: &mut Gradients) -> candle_core::Result<f32> {
        let mut sum = 0.0;
        let is_a = |name: &str| lora::split_name(name).is_some_and(|(_, which)| which == 0);
        for (name, grad) in grads.iter_mut().filter(|(n, _)| self.old > 0 && is_a(n)) {
            let a = &params[name].var;
            let width = a.dims()[1];
            sum += orthogonal(&numbers(a.as_tensor())?, self.old * width, width, self.lambda, grad);
        }
        Ok(sum)
    }
}

/// `λ Σ |a_s · a_t|` over old rows s (the first `old` values of `a`) and new rows t; adds its gradient.
fn orthogonal(a: &[f32], old: usize, width: usize, lambda: f32, grad: &mut [f32]) -> f32 {
    let (before, new) = a.split_at(old);
    let mut sum = 0.0;
    for (t, g) in new.chunks_exact(width).zip(grad[old..].chunks_exact_mut(width)) {
        for s in before.chunks_exact(width) {
            let dot: f32 = s.iter().zip(t).map(|(x, y)| x * y).sum();
            sum += lambda * dot.abs();
            let sign = lambda * if dot == 0.0 { 0.0 } else { dot.signum() };
            g.iter_mut().zip(s).for_each(|(g, s)| *g += sign * s);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpet_formats::pet::lora::Scaling;
    use conpet_formats::pet::{Lora, Places};

    #[test]
    fn loras_side_by_side_keep_their_scale_and_other_kinds_are_refused() {
        let one = Lora { rank: 4, alpha: 8.0, scaling: Scaling::AlphaOverRank };
        let (pet, rank) = grown(&PetSpec::lora(one), 3).unwrap();
        assert_eq!((pet.only_lora(), rank), (Some(one.of_rank(12)), 4));
        assert_eq!(grown(&PetSpec::lora(one), 1025).unwrap_err().code(), Code::Cap);
        let both = PetSpec::parse("lora+bias", one, Places::LINEARS).unwrap();
        let e = grown(&both, 1).unwrap_err();
        assert!(e.code() == Code::Unsupported && e.to_string().contains("bias"), "{e}");
    }

    #[test]
    fn the_penalty_s_gradient_is_its_slope() {
        let a = [0.3f32, -0.7, 0.2, 0.9, 0.4, -0.1, -0.5, 0.6, 0.8];
        let cost = |a: &[f32]| orthogonal(a, 3, 3, 0.5, &mut [0.0; 9]);
        let mut grad = [0.0; 9];
        let _ = orthogonal(&a, 3, 3, 0.5, &mut grad);
        assert_eq!(grad[..3], [0.0; 3], "old rows get no gradient");
        for i in 3..9 {
            let (mut up, mut down) = (a, a);
            (up[i], down[i]) = (a[i] + 1e-2, a[i] - 1e-2);
            // The penalty is piecewise linear, so the difference is exact up to f32.
            assert!((grad[i] - (cost(&up) - cost(&down)) / 2e-2).abs() < 1e-4);
        }
    }
}
