//! LAE, learning-accumulation-ensemble (Gao et al. 2023, arXiv 2303.10070), for modules of any kind.
//!
//! * **Learning.** The online module learns each task with a loss over the task's own labels only; the head's
//!   rows of earlier labels are frozen. From the second task on, the module is frozen for the first part of the
//!   steps (`--lae-freeze`), so that the new rows of the head learn first.
//! * **Adaptation speed calibration.** At each site, what a kind adds (a LoRA's product, an adapter's output, a
//!   prefix's keys and its values) is multiplied by a learned scalar that starts at 1, so that all sites and
//!   kinds adapt at a similar speed. The scalar is folded into the tensors it multiplies (`Kind::products`)
//!   when the stage is written.
//! * **Accumulation.** The offline module begins as a copy of the online one when the second task begins; after
//!   every step `offline = d · offline + (1 - d) · online`. Published: d = 0.9999, at about 1,042 steps a task;
//!   for any number of steps, `d = k^(1/steps)` keeps the same fraction k = 0.9 (`--lae-keep`) of the offline
//!   module over a task.
//! * **Ensemble.** Both modules are in the bundle with one head, and both are run: a label's probability is the
//!   larger of the two.

use super::shared::Shared;
use crate::fit::{Buffers, Done, Extra, Gradients, HEAD, Labelled, Loss, Recipe, Trained};
use crate::nn::numbers;
use crate::optim::{Held, Param};
use crate::pet;
use crate::services::{Services, Stage};
use crate::settings::range::{any, part};
use crate::settings::settings;
use candle_core::Var;
use conpet_formats::bundle::Draft;
use conpet_formats::pet::{Part, Pet, PetKind, PetSpec};
use conpet_formats::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

settings! { "lae" Settings Flags {
    /// lae: fraction of a task's steps in which the module is frozen and the head's new rows learn (from the
    /// second task on).
    lae_freeze: f64 = 0.6, part();
    /// lae: fraction of the offline module that remains after a task's steps.
    lae_keep: f64 = 0.9, part();
    /// lae: which module answers.
    lae_experts: Experts = Experts::Both, any();
}}

/// Which module answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Experts {
    /// Both; the surer one decides.
    Both,
    /// The online module, which is trained.
    Online,
    /// The offline module, which follows it.
    Offline,
}

/// Index of the online module in the bundle.
const ONLINE: u32 = 0;
/// Index of the offline module.
const OFFLINE: u32 = 1;

/// Trains the online module on the next task and lets the offline one follow.
pub fn learn(services: &mut Services<'_>, own: &Settings, stage: Stage) -> Result<Option<Draft>> {
    let s = Shared::begin(services, stage.task)?;
    let (spec, trunk) = (services.spec(), services.trunk());
    let scales = |part: &Part| {
        let kind = part.pet.kind();
        part.sites(spec, trunk).into_iter().map(move |site| scale_name(&site.to_string(), kind))
    };
    // The second task begins with two equal modules.
    let offline = s.start.clone().map(|online| services.stored(OFFLINE, None).unwrap_or(online).tensors);
    let mut lae = Lae {
        scales: s.module.pet.parts().iter().flat_map(scales).collect(),
        before: s.before,
        freeze: own.lae_freeze,
        decay: 1.0,
        offline: offline.unwrap_or_default(),
    };
    lae.decay = own.lae_keep.powf(1.0 / services.epoch_steps(&s.rows()) as f64);
    let Some(mut online) = s.fit(services, &lae)? else { return Ok(None) };
    let offline = lae.offline(&online);
    lae.take_in_scales(&mut online);
    let mut draft = s.finish(services, stage.draft, &online)?;
    if let Some(offline) = offline {
        let digest = services.tasks()[s.t].digest.clone();
        if draft.manifest.modules.len() as u32 == OFFLINE {
            services.add_module(&mut draft, &offline, &s.module, &digest)?;
        } else {
            services.replace_module(&mut draft, OFFLINE, &offline, &s.module, &digest)?;
        }
        let (module, ensemble) = match own.lae_experts {
            Experts::Online => (ONLINE, vec![]),
            Experts::Offline => (OFFLINE, vec![]),
            Experts::Both => (ONLINE, vec![OFFLINE]),
        };
        for task in &mut draft.manifest.tasks {
            (task.module, task.ensemble) = (Some(module), ensemble.clone());
        }
    }
    Ok(Some(draft))
}

/// Fails for a module whose tensors cannot be scaled one by one.
///
/// # Errors
/// Names the module.
pub fn fits(pet: &PetSpec) -> Result<()> {
    if !pet.parts().iter().any(|p| matches!(p.pet, Pet::Prefix(x) if x.mid > 0)) {
        return Ok(());
    }
    Err(Error::new(Code::Unsupported, format!("--method lae cannot learn --pet {pet}"))
        .hint("it scales a prefix's pairs themselves: leave mid out"))
}

struct Lae {
    /// Names of the scalars.
    scales: Vec<String>,
    /// Labels of earlier tasks.
    before: usize,
    /// Fraction of the steps in which the module is frozen.
    freeze: f64,
    /// Fraction of the offline module that remains after a step.
    decay: f64,
    /// The offline module before the task; empty in the first.
    offline: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

const SCALE: &str = "scale.";

fn scale_name(site: &str, kind: PetKind) -> String {
    format!("{SCALE}{site}.{}", kind.name())
}

/// The scalar that multiplies a tensor, if one does.
fn scale_of(tensor: &str) -> Option<String> {
    let (site, suffix) = tensor.rsplit_once('.').filter(|_| pet::is_module(tensor))?;
    let kind = PetKind::ALL.iter().find(|k| k.usual().products().contains(&suffix))?;
    Some(scale_name(site, *kind))
}

impl Lae {
    /// The offline module after training, with its scales folded in; `None` in the first task.
    fn offline(&self, online: &Trained) -> Option<Trained> {
        let of = |(n, v): (&String, &Vec<f32>)| (n.clone(), (online.tensors[n].0.clone(), v.clone()));
        let tensors = online.buffers.iter().map(of).collect();
        let mut out = Trained { tensors, buffers: Buffers::new(), ..online.clone() };
        self.take_in_scales(&mut out);
        (!self.offline.is_empty()).then_some(out)
    }

    /// Replaces each tensor by its product with its scalar.
    fn take_in_scales(&self, t: &mut Trained) {
        let scales: Vec<_> = self.scales.iter().filter_map(|s| t.tensors.remove_entry(s)).collect();
        let scales: BTreeMap<String, f32> = scales.into_iter().map(|(n, (_, v))| (n, v[0])).collect();
        for (name, (_, v)) in &mut t.tensors {
            if let Some(c) = scale_of(name).and_then(|s| scales.get(&s)) {
                v.iter_mut().for_each(|v| *v *= c);
            }
        }
    }
}

fn number(params: &BTreeMap<String, Param>, scale: &str) -> candle_core::Result<f32> {
    Ok(numbers(params[scale].var.as_tensor())?[0])
}

impl Recipe for Lae {
    fn name(&self) -> String {
        format!("lae {} {}", self.freeze, self.decay)
    }

    fn parameters(&self) -> Vec<Extra> {
        let one = |s: &String| Extra { name: s.clone(), shape: vec![1], start: vec![1.0], lr: 1.0 };
        self.scales.iter().map(one).collect()
    }

    fn buffers(&self, params: &BTreeMap<String, Param>) -> candle_core::Result<Buffers> {
        let own = |n: &&String| !self.offline.is_empty() && !n.starts_with(HEAD);
        let start = |n: &String| match self.offline.get(n) {
            Some((_, v)) => Ok((n.clone(), v.clone())),
            // The scalars start again at 1: those of the stage before are folded into its tensors.
            None => numbers(params[n].var.as_tensor()).map(|v| (n.clone(), v)),
        };
        params.keys().filter(own).map(start).collect()
    }

    fn held(&self, name: &str, step: u64, steps: u64) -> Held {
        let frozen = self.before > 0 && (step as f64) < self.freeze * steps as f64;
        match name.starts_with(HEAD) {
            true => Held::Rows(self.before),
            false if frozen => Held::All,
            false => Held::None,
        }
    }

    fn in_force(&self, name: &str, params: &BTreeMap<String, Param>) -> candle_core::Result<Var> {
        let var = &params[name].var;
        match scale_of(name) {
            Some(scale) => Var::from_tensor(&(var.as_tensor() * f64::from(number(params, &scale)?))?),
            None => Ok(var.clone()),
        }
    }

    fn loss(&self, b: &Labelled<'_>) -> candle_core::Result<Loss> {
        b.cross_entropy(&b.logits(b.features)?, self.before).map(Loss::from)
    }

    /// Turns the gradient `G` of `c V` into those of `c` and `V`: `∂L/∂V = c G`, `∂L/∂c = Σ G ⊙ V`.
    fn gradient(&self, params: &BTreeMap<String, Param>, grads: &mut Gradients) -> candle_core::Result<f32> {
        // A sparse delta may have no position at a site; its scalar then does not change.
        let mut of_scales: Gradients = self.scales.iter().map(|s| (s.clone(), vec![0.0])).collect();
        for (name, grad) in grads.iter_mut() {
            let Some(scale) = scale_of(name) else { continue };
            let (c, values) = (number(params, &scale)?, numbers(params[name].var.as_tensor())?);
            if let Some(sum) = of_scales.get_mut(&scale) {
                sum[0] += grad.iter().zip(&values).map(|(g, v)| g * v).sum::<f32>();
            }
            grad.iter_mut().for_each(|g| *g *= c);
        }
        grads.extend(of_scales);
        Ok(0.0)
    }

    fn after(&self, done: &Done<'_>, buffers: &mut Buffers) -> candle_core::Result<()> {
        let (d, rest) = (self.decay as f32, (1.0 - self.decay) as f32);
        for (name, offline) in buffers {
            let online = numbers(done.params[name].var.as_tensor())?;
            offline.iter_mut().zip(online).for_each(|(off, on)| *off = d * *off + rest * on);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optim::{AdamW, AdamWConfig};
    use candle_core::{Device, Tensor};
    use conpet_formats::pet::lora;

    fn lae() -> Lae {
        let site = "blk.2.attn_q.weight";
        let offline = BTreeMap::from([(lora::b_name(site), (vec![2, 1], vec![1.0, -1.0]))]);
        let scales = [PetKind::Lora, PetKind::Adapter].map(|k| scale_name(site, k)).to_vec();
        Lae { scales, before: 3, freeze: 0.6, decay: 0.75, offline }
    }

    fn params(b: [f32; 2], scale: f32) -> AdamW {
        let mut o = AdamW::new(AdamWConfig::default());
        for (name, shape, v) in [
            ("blk.2.attn_q.weight.lora_b", vec![2, 1], b.to_vec()),
            ("blk.2.attn_q.weight.adapter_up", vec![2, 1], vec![1.0, 2.0]),
            ("blk.2.attn_q.weight.adapter_up_bias", vec![2], vec![3.0, 4.0]),
            ("scale.blk.2.attn_q.weight.lora", vec![1], vec![scale]),
            ("scale.blk.2.attn_q.weight.adapter", vec![1], vec![2.0]),
        ] {
            let t = Tensor::from_vec(v, shape, &Device::Cpu).unwrap();
            o.add(name.into(), Var::from_tensor(&t).unwrap(), 1.0);
        }
        o
    }

    #[test]
    fn the_scalar_multiplies_the_product_and_gets_its_own_gradient() {
        let (lae, o) = (lae(), params([2.0, 3.0], 0.5));
        let b = lae.in_force("blk.2.attn_q.weight.lora_b", &o.params).unwrap();
        assert_eq!(numbers(b.as_tensor()).unwrap(), [1.0, 1.5]);
        let mut grads = Gradients::from(
            [("lora_b", [10.0, -4.0]), ("adapter_up", [1.0, 1.0]), ("adapter_up_bias", [0.5, 0.0])]
                .map(|(n, g)| (format!("blk.2.attn_q.weight.{n}"), g.to_vec())),
        );
        lae.gradient(&o.params, &mut grads).unwrap();
        assert_eq!(grads["blk.2.attn_q.weight.lora_b"], [5.0, -2.0]);
        assert_eq!(grads["scale.blk.2.attn_q.weight.lora"], [20.0 - 12.0]);
        // One scalar for the two tensors of an adapter's output.
        assert_eq!(grads["blk.2.attn_q.weight.adapter_up_bias"], [1.0, 0.0]);
        assert_eq!(grads["scale.blk.2.attn_q.weight.adapter"], [3.0 + 1.5]);
        let tensor = |n: &str| (n.to_owned(), (vec![2], vec![1.0, 2.0]));
        let mut t =
            Trained { tensors: ["head.bias", "blk.2.attn_q.weight.lora_b"].map(tensor).into(), ..Trained::default() };
        t.tensors.insert("scale.blk.2.attn_q.weight.lora".into(), (vec![1], vec![3.0]));
        lae.take_in_scales(&mut t);
        let left: Vec<_> = t.tensors.values().map(|x| x.1.clone()).collect();
        assert_eq!(left, [[3.0, 6.0], [1.0, 2.0]], "the product, and the unchanged head");
    }

    #[test]
    fn the_offline_module_follows_and_the_online_one_waits() {
        let (lae, o) = (lae(), params([5.0, 3.0], 1.0));
        let mut buffers = lae.buffers(&o.params).unwrap();
        lae.after(&Done { rows: &[], notes: &[], params: &o.params }, &mut buffers).unwrap();
        assert_eq!(buffers["blk.2.attn_q.weight.lora_b"], [0.75 + 1.25, -0.75 + 0.75]);
        let held = |step| lae.held("blk.2.attn_q.weight.lora_a", step, 10);
        assert_eq!((held(0), held(5), held(6)), (Held::All, Held::All, Held::None));
        assert_eq!(lae.held("head.weight", 0, 10), Held::Rows(3));
    }
}
