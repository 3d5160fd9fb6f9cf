//! Turns the settings of module and head into the specs that are trained, stored and run.

use crate::settings::automatic::{Text, Trunk};
use crate::settings::range::{any, part, positive, refusal, such};
use crate::settings::settings;
use conpet_formats::feature::{FeaturePart, FeatureSpec, Pool, StateNorm};
use conpet_formats::head::HeadKind;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::lora::Scaling;
use conpet_formats::pet::{Budget, Lora, PetSpec, Places};
use conpet_formats::{Code, Error, Result};
use serde::{Deserialize, Serialize};

settings! { "Module" Settings Flags {
    /// Whether tasks with labels get modules of their own: train; auto, which keeps those that say more than the
    /// selector's closed form does alone, judged on rows that neither has seen; or none (--quick).
    modules: Modules = Modules::Train, any();
    /// Number of layers below the first site, shared by all modules; -1 is a third of the base's layers.
    trunk: Trunk = Trunk::Third, any();
    /// The module: PET kinds joined by +, each with its options: lora, sparse, ia3, bias, adapter, prefix,
    /// prompt; for example lora:r=4+bias, adapter:n=16,form=parallel,act=relu, sparse:n=5000,rule=fisher
    /// (docs/pet-kinds.md).
    pet: String = "lora".into(), any();
    /// Number of trainable parameters of a module of any kind: 5000, or a fraction of the base's such as 0.1%
    /// or 1e-4; overrides rank and the sizes in pet. Empty keeps those.
    params: Text = Text::default(), any();
}}

settings! { "LoRA" LoraSettings LoraFlags {
    /// LoRA rank, if pet does not give it.
    rank: usize = 8, such("1 to 4096", |v| (1..=4096).contains(v));
    /// LoRA alpha, if pet does not give it; the scale is alpha / rank.
    alpha: f64 = 16.0, positive();
    /// Linears of each branch layer that get a LoRA, comma-separated, if pet does not give them.
    sites: String = "attn_q,attn_k,attn_v,attn_output,ffn_gate,ffn_up,ffn_down".into(), any();
    /// Dropout of a LoRA's inputs; other kinds have none.
    dropout: f64 = 0.0, part();
}}

settings! { "Head" HeadSettings HeadFlags {
    /// How a task's labels are scored: linear (a trained head), choice (the likelihood of the label's text),
    /// choice-mean (the same, averaged over its tokens).
    head: String = HeadKind::Linear.name().into(), such(names(), |v: &String| kind(v).is_some());
    /// The feature that linear heads read: LAYER:POOL parts joined by +; LAYER is a number, trunk or last; POOL
    /// is mean, max, min, last, marker:TEXT or span:OPEN:CLOSE.
    head_feature: String = "last:mean".into(), any();
}}

/// Whether tasks with labels get modules of their own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Modules {
    /// A module and a head for each.
    #[default]
    Train,
    /// The same, where they make answers better.
    Auto,
    /// None: the selector's scores of their labels are the answer.
    None,
}

/// A module to be trained: its spec and its sites.
#[derive(Debug, Clone, PartialEq)]
pub struct ModulePlan {
    /// Its spec.
    pub pet: PetSpec,
    /// Full names of its sites, sorted; without any, only the head is trained.
    pub sites: Vec<String>,
}

impl ModulePlan {
    /// The spec at all its sites above a trunk.
    ///
    /// # Errors
    /// If it cannot act there.
    pub fn above(pet: PetSpec, spec: &ModelSpec, trunk: usize) -> Result<Self> {
        Ok(Self { sites: pet.sites(spec, trunk)?, pet })
    }
}

impl Settings {
    /// Number of layers of the trunk.
    ///
    /// # Errors
    /// If the base has no layer above it.
    pub fn trunk(&self, spec: &ModelSpec) -> Result<usize> {
        let trunk = self.trunk.layers(spec.n_layer);
        if trunk < spec.n_layer {
            return Ok(trunk);
        }
        Err(refusal("trunk", &trunk, &format!("-1 (a third) or 0 to {}", spec.n_layer - 1)))
    }

    /// The PET spec.
    ///
    /// # Errors
    /// If `--pet`, `--params` or `--sites` is malformed, or they do not fit each other or the base.
    pub fn pet(&self, lora: &LoraSettings, spec: &ModelSpec) -> Result<PetSpec> {
        let at = Places::parse(&lora.sites, ',').map_err(|e| e.in_section("--sites"))?;
        if at.is_empty() || !at.within(Places::LINEARS) {
            return Err(Error::new(Code::Value, format!("--sites names {:?}", lora.sites))
                .hint(format!("sites are {}", Places::LINEARS.to_string().replace('/', ", "))));
        }
        let one = Lora { rank: lora.rank, alpha: lora.alpha, scaling: Scaling::AlphaOverRank };
        let pet = PetSpec::parse(&self.pet, one, at)?;
        let Some(params) = self.params.get() else { return Ok(pet) };
        let budget: Budget = params.parse().map_err(|e: Error| e.in_section("--params"))?;
        pet.sized(spec, self.trunk(spec)?, budget).map_err(|e| e.in_section("--params"))
    }
}

impl HeadSettings {
    /// The kind of head.
    ///
    /// # Errors
    /// If `--head` names no kind.
    pub fn kind(&self) -> Result<HeadKind> {
        kind(&self.head).ok_or_else(|| refusal("head", &self.head, &names()))
    }

    /// The feature that heads read.
    ///
    /// # Errors
    /// If `--head-feature` is malformed, or reads another layer than the last.
    pub fn feature(&self, spec: &ModelSpec, trunk: usize) -> Result<FeatureSpec> {
        let f = feature(&self.head_feature, StateNorm::Output, spec, trunk)?;
        match f.parts.iter().find(|p| p.layer as usize != spec.n_layer) {
            None => Ok(f),
            Some(p) => Err(Error::new(Code::Value, format!("--head-feature reads layer {}", p.layer))
                .hint("a trained head reads the last layer: write last:POOL")),
        }
    }
}

fn kind(name: &str) -> Option<HeadKind> {
    HeadKind::ALL.into_iter().find(|k| k.name() == name)
}

fn names() -> String {
    HeadKind::ALL.map(HeadKind::name).join(", ")
}

/// Parses a feature written as LAYER:POOL parts joined by +.
///
/// # Errors
/// If it is malformed, or the base lacks a layer it reads.
pub fn feature(text: &str, norm: StateNorm, spec: &ModelSpec, trunk: usize) -> Result<FeatureSpec> {
    let part = |p: &str| -> Result<FeaturePart> {
        let bad = || {
            Error::new(Code::Value, format!("feature part {p:?} is not LAYER:POOL"))
                .hint("for example 10:mean+10:last, trunk:mean or last:marker:[MASK]")
        };
        let (layer, pool) = p.split_once(':').ok_or_else(bad)?;
        let layer = match layer {
            "trunk" => trunk as u32,
            "last" => spec.n_layer as u32,
            n => n.parse().map_err(|_| bad())?,
        };
        Ok(FeaturePart { layer, pool: Pool::parse(pool)? })
    };
    let feature = FeatureSpec { norm, parts: text.split('+').map(part).collect::<Result<_>>()? };
    feature.check(spec.n_layer as u32)?;
    Ok(feature)
}

/// Writes a feature as [`feature`] reads it.
pub fn feature_text(feature: &FeatureSpec) -> String {
    feature.parts.iter().map(|p| format!("{}:{}", p.layer, p.pool)).collect::<Vec<_>>().join("+")
}
