//! Presets: named groups of settings.

use super::Config;
use crate::optim::Schedule;
use crate::settings::automatic::Trunk;
use crate::settings::range::refusal;
use conpet_formats::Result;

/// A preset: its name and its settings.
type Preset = (&'static str, fn() -> Config);

/// All presets.
pub const PRESETS: &[Preset] = &[("conpet-paper", conpet_paper)];

impl Config {
    /// The preset of this name.
    ///
    /// # Errors
    /// If there is none.
    pub fn preset(name: &str) -> Result<Self> {
        let names = || PRESETS.iter().map(|p| p.0).collect::<Vec<_>>().join(", ");
        let found = PRESETS.iter().find(|p| p.0 == name).map(|p| p.1());
        found.ok_or_else(|| refusal("preset", &name, &names()))
    }
}

/// Dynamic ConPET with the hyper-parameters of the published code (Song et al. 2023; those of FewRel where they
/// differ by data set). docs/methods.md lists the differences from it.
fn conpet_paper() -> Config {
    let mut c = Config::default();
    c.services.module.trunk = Trunk::Layers(0);
    let lora = &mut c.services.lora;
    (lora.rank, lora.alpha, lora.sites) = (4, 1.0, "attn_q,attn_k".into());
    c.services.head.head_feature = "last:last".into();
    let training = &mut c.services.training;
    (training.epochs, training.batch, training.seed) = (10, 8, 100);
    (training.lr, training.head_lr, training.adam_eps, training.weight_decay) = (2e-4, 1.0, 1e-4, 0.01);
    (training.warmup, training.schedule, training.clip) = (0.0, Schedule::Constant, 1.0);
    c.services.rows.max_len = 128;
    c.services.replay.replay_limit = 400;
    let selector = &mut c.methods.dynamic.common;
    (selector.selector, selector.top_k, selector.margin) = ("conpet".into(), 1, 0.0);
    c
}
