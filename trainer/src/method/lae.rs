//! LAE, learning-accumulation-ensemble (Gao et al. 2023, arXiv 2303.10070), for LoRA.
//!
//! * **Learning.** The online module learns each task, with the loss over the task's own labels only;
//!   the head's rows of earlier labels stay. From the second task on the module is frozen for the
//!   first part of the steps (`--lae-freeze`): the new rows of the head learn first.
//! * **Adaptation speed calibration.** At each site the LoRA's product is multiplied by a learned scalar
//!   that starts at 1, so that all sites (and kinds) adapt at a like speed; it is taken into `B` when
//!   the stage is written.
//! * **Accumulation.** The offline module begins as a copy of the online one when the second task
//!   begins; after every step `offline = d · offline + (1 - d) · online`. Published: d = 0.9999, at about
//!   1,042 steps a task; with other numbers of steps `d = k^(1/steps)` keeps what that keeps of the
//!   offline module over a task, k = 0.9 (`--lae-keep`).
//! * **Ensemble.** Both modules are in the bundle under one head and both are run: a label's probability
//!   is the larger of the two.

use super::shared::Shared;
use crate::fit::{Buffers, Done, Extra, Gradients, Labelled, Loss, Recipe, Trained};
use crate::nn::numbers;
use crate::optim::{Held, Param};
use crate::run::{Run, Stage};
use candle_core::Var;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::pet::lora;
use std::collections::BTreeMap;

/// The number of the online module in the bundle.
const ONLINE: u32 = 0;
/// The number of the offline module.
const OFFLINE: u32 = 1;

/// Trains the online module on the next task and lets the offline one follow.
pub fn learn(run: &mut Run<'_>, stage: Stage) -> Result<Option<Draft>> {
    let s = Shared::begin_labelled(run, stage.task)?;
    // The second task begins with two equal modules.
    let offline = s.start.clone().map(|online| run.stored(OFFLINE, None).unwrap_or(online).tensors);
    let mut lae = Lae {
        sites: run.sites.clone(),
        before: s.before,
        freeze: run.config.lae_freeze,
        decay: 1.0,
        offline: offline.unwrap_or_default(),
    };
    lae.decay = run.config.lae_keep.powf(1.0 / run.epoch_steps(&s.rows()) as f64);
    let Some(mut online) = s.fit(run, &lae)? else { return Ok(None) };
    let offline = lae.offline(&online);
    lae.take_in_scales(&mut online);
    let mut draft = s.finish(run, stage.draft, &online)?;
    if let Some(offline) = offline {
        let digest = run.tasks[s.t].digest.clone();
        if draft.manifest.modules.len() as u32 == OFFLINE {
            run.add_module(&mut draft, &offline, &run.sites, &digest)?;
        } else {
            run.replace_module(&mut draft, OFFLINE, &offline, &digest)?;
        }
        let (module, ensemble) = match run.config.lae_experts.as_str() {
            "online" => (ONLINE, vec![]),
            "offline" => (OFFLINE, vec![]),
            _ => (ONLINE, vec![OFFLINE]),
        };
        for task in &mut draft.manifest.tasks {
            (task.module, task.ensemble) = (Some(module), ensemble.clone());
        }
    }
    Ok(Some(draft))
}

struct Lae {
    sites: Vec<String>,
    /// Labels of earlier tasks.
    before: usize,
    /// Part of the steps in which the module is frozen.
    freeze: f64,
    /// What a step leaves of the offline module.
    decay: f64,
    /// The offline module before the task; empty in the first.
    offline: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

fn scale_name(site: &str) -> String {
    format!("scale.{site}")
}

impl Lae {
    /// The offline module after training, its scales taken in; none in the first task.
    fn offline(&self, online: &Trained) -> Option<Trained> {
        let of = |(n, v): (&String, &Vec<f32>)| (n.clone(), (online.tensors[n].0.clone(), v.clone()));
        let tensors = online.buffers.iter().map(of).collect();
        let mut out = Trained { tensors, buffers: Buffers::new(), ..online.clone() };
        self.take_in_scales(&mut out);
        (!self.offline.is_empty()).then_some(out)
    }

    /// `B` becomes the product of `B` and its site's scalar.
    fn take_in_scales(&self, t: &mut Trained) {
        for site in &self.sites {
            let scale = t.tensors.remove(&scale_name(site)).map_or(1.0, |x| x.1[0]);
            if let Some((_, b)) = t.tensors.get_mut(&lora::b_name(site)) {
                b.iter_mut().for_each(|v| *v *= scale);
            }
        }
    }

    fn scale(params: &BTreeMap<String, Param>, site: &str) -> candle_core::Result<f32> {
        Ok(numbers(params[&scale_name(site)].var.as_tensor())?[0])
    }
}

impl Recipe for Lae {
    fn name(&self) -> String {
        format!("lae {} {}", self.freeze, self.decay)
    }

    fn parameters(&self) -> Vec<Extra> {
        let one = |s: &String| Extra { name: scale_name(s), shape: vec![1], start: vec![1.0], lr: 1.0 };
        self.sites.iter().map(one).collect()
    }

    fn buffers(&self, params: &BTreeMap<String, Param>) -> candle_core::Result<Buffers> {
        let own = |n: &&String| !self.offline.is_empty() && !n.starts_with("head.");
        let start = |n: &String| match self.offline.get(n) {
            Some((_, v)) => Ok((n.clone(), v.clone())),
            // The scalars begin anew: those of the stage before are in its B.
            None => numbers(params[n].var.as_tensor()).map(|v| (n.clone(), v)),
        };
        params.keys().filter(own).map(start).collect()
    }

    fn held(&self, name: &str, step: u64, steps: u64) -> Held {
        let frozen = self.before > 0 && (step as f64) < self.freeze * steps as f64;
        match name.starts_with("head.") {
            true => Held::Rows(self.before),
            false if frozen => Held::All,
            false => Held::None,
        }
    }

    fn in_force(&self, name: &str, params: &BTreeMap<String, Param>) -> candle_core::Result<Var> {
        let var = &params[name].var;
        match name.strip_suffix(".lora_b") {
            Some(site) => Var::from_tensor(&(var.as_tensor() * f64::from(Self::scale(params, site)?))?),
            None => Ok(var.clone()),
        }
    }

    fn loss(&self, b: &Labelled<'_>) -> candle_core::Result<Loss> {
        b.cross_entropy(&b.logits(b.features)?, self.before).map(Loss::from)
    }

    /// From the gradient `G` of `c B` to those of its parts: `∂L/∂B = c G`, `∂L/∂c = Σ G ⊙ B`.
    fn gradient(&self, params: &BTreeMap<String, Param>, grads: &mut Gradients) -> candle_core::Result<f32> {
        for site in &self.sites {
            let (name, scale) = (lora::b_name(site), Self::scale(params, site)?);
            let Some(grad) = grads.get_mut(&name) else { continue };
            let b = numbers(params[&name].var.as_tensor())?;
            let of_scale = grad.iter().zip(&b).map(|(g, b)| g * b).sum();
            grad.iter_mut().for_each(|g| *g *= scale);
            grads.insert(scale_name(site), vec![of_scale]);
        }
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

    fn lae() -> Lae {
        let site = "blk.2.attn_q.weight".to_owned();
        let offline = BTreeMap::from([(lora::b_name(&site), (vec![2, 1], vec![1.0, -1.0]))]);
        Lae { sites: vec![site], before: 3, freeze: 0.6, decay: 0.75, offline }
    }

    fn params(b: [f32; 2], scale: f32) -> AdamW {
        let mut o = AdamW::new(AdamWConfig::default());
        for (name, shape, v) in [
            ("blk.2.attn_q.weight.lora_b", vec![2, 1], b.to_vec()),
            ("scale.blk.2.attn_q.weight", vec![1], vec![scale]),
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
        let mut grads = Gradients::from([("blk.2.attn_q.weight.lora_b".to_owned(), vec![10.0, -4.0])]);
        lae.gradient(&o.params, &mut grads).unwrap();
        assert_eq!(grads["blk.2.attn_q.weight.lora_b"], [5.0, -2.0]);
        assert_eq!(grads["scale.blk.2.attn_q.weight"], [20.0 - 12.0]);
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
