//! Every setting of a run: defaults, overlaid by a TOML file, overlaid by flags.

use crate::method;
use crate::selectors::centroid;
use conpet_formats::feature::{FeaturePart, FeatureSpec, Pool, StateNorm};
use conpet_formats::head::HeadKind;
use conpet_formats::hidden;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::lora::Scaling;
use conpet_formats::pet::{Budget, Lora, PetSpec, Places};
use conpet_formats::{Code, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

macro_rules! settings {
    ($($(#[doc = $doc:literal])* $name:ident : $ty:ty = $default:expr;)*) => {
        /// The settings of a run.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct Config { $($(#[doc = $doc])* pub $name: $ty,)* }

        impl Default for Config {
            fn default() -> Self { Self { $($name: $default,)* } }
        }

        /// The same settings as flags; what is not given keeps its value.
        #[derive(Debug, Clone, Default, clap::Args)]
        pub struct Flags { $($(#[doc = $doc])* #[arg(long)] pub $name: Option<$ty>,)* }

        impl Flags {
            /// Puts the given flags over a configuration.
            pub fn overlay(self, mut c: Config) -> Config {
                $(if let Some(v) = self.$name { c.$name = v; })*
                c
            }
        }
    };
}

settings! {
    /// How the stream is learned: dynamic (a module for each task, and a selector), per-task (the same, the task named by the caller); with one shared module: sequential (no protection), joint (all data at once), ewc, lwf, o-lora, lae, and with replay emr, ea-emr, crl, static-emr, static-ea-emr, static-crl (docs/methods.md).
    method: String = "dynamic".into();
    /// What chooses the task: lda, ridge, centroid (closed forms); linear, mlp (trained on a small memory of features); conpet (a module and a T-way head of its own, trained with replay); uniform (all modules run); task (named by the caller).
    selector: String = "lda".into();
    /// Layers below the first site, shared by all modules; -1 is a third of the base's.
    trunk: i64 = -1;
    /// What a module is: PET kinds joined by +, each with its options: lora, sparse, ia3, bias, adapter, prefix, prompt; for example lora:r=4+bias, adapter:n=16,form=parallel,act=relu, sparse:n=5000,rule=fisher (docs/pet-kinds.md).
    pet: String = "lora".into();
    /// Trainable numbers of a module, whatever its kind: 5000, or a part of the base's as 0.1% or 1e-4; it overrides rank and the sizes in pet. Empty leaves them.
    params: String = String::new();
    /// LoRA rank, where pet does not give it.
    rank: usize = 8;
    /// LoRA alpha, where pet does not give it; the scale is alpha / rank.
    alpha: f64 = 16.0;
    /// Linears of each branch layer that get a LoRA, comma-separated, where pet does not give them.
    sites: String = "attn_q,attn_k,attn_v,attn_output,ffn_gate,ffn_up,ffn_down".into();
    /// How a task's labels are told apart: linear (a trained head), choice (the likelihood of the label's text), choice-mean (the same for each of its tokens).
    head: String = "linear".into();
    /// What linear heads read: LAYER:POOL parts joined by +; LAYER is a number, trunk or last; POOL is mean, max, min, last, marker:TEXT or span:OPEN:CLOSE.
    head_feature: String = "last:mean".into();
    /// What the selector reads, in the same form.
    selector_feature: String = "trunk:mean".into();
    /// Passes over a task's rows.
    epochs: usize = 3;
    /// Rows in a batch.
    batch: usize = 16;
    /// Peak learning rate of the module.
    lr: f64 = 1e-3;
    /// Learning rate of the head, as a multiple of lr.
    head_lr: f64 = 3.0;
    /// Dropout of what a LoRA reads; other kinds have none.
    dropout: f64 = 0.0;
    /// Decoupled weight decay.
    weight_decay: f64 = 0.01;
    /// Epsilon of AdamW.
    adam_eps: f64 = 1e-8;
    /// Part of the steps that warm up.
    warmup: f64 = 0.06;
    /// After the warm-up: cosine or constant.
    schedule: String = "cosine".into();
    /// Largest gradient norm; 0 is off.
    clip: f64 = 1.0;
    /// Seed of every random stream.
    seed: u64 = 1;
    /// Worker threads; 0 is one for each processor.
    threads: usize = 0;
    /// Shrinkage of the lda covariance (or ridge strength), from 0 to 1.
    shrinkage: f64 = 0.05;
    /// Random units that ridge reads the features through; 0 reads them as they are.
    random_features: usize = 0;
    /// Where centroid measures distances: whitened, scaled (each direction by its deviation) or plain.
    centroid: String = "whitened".into();
    /// Rows of each class whose features linear and mlp remember.
    selector_memory: usize = 20;
    /// Training steps of linear and mlp, for each task.
    selector_steps: u64 = 400;
    /// Hidden units of mlp.
    selector_hidden: usize = 256;
    /// Weight of the token n-gram classifier beside lda's states; 0 leaves it out.
    ngram_weight: f64 = 1.0;
    /// Most candidate modules to run where the selector is unsure.
    top_k: u32 = 2;
    /// The selector is unsure below this margin between its two best tasks.
    margin: f64 = 0.5;
    /// Part of a task's validation rows that may count as unlike any task, where the selector abstains.
    abstain: f64 = 0.01;
    /// Longest row, in tokens.
    max_len: usize = 256;
    /// Most training rows of each class (of the task, for generation); 0 keeps all.
    subset: usize = 0;
    /// Most validation and test rows of each class (of the task, for generation); 0 keeps all.
    test_subset: usize = 0;
    /// Frozen weights while training: auto, dense (fast) or quant (small).
    weights: String = "auto".into();
    /// Activations kept for the backward pass, in MiB; layers that do not fit compute theirs again.
    activations: usize = 512;
    /// Steps between checkpoints.
    checkpoint_every: u64 = 50;
    /// Batches in an epoch of the conpet selector's and of static methods' mixtures of new and old rows (the step budget is epochs * 0.8 * this).
    replay_limit: u64 = 100;
    /// ewc: strength of the springs on what mattered to earlier tasks.
    ewc_lambda: f64 = 1000.0;
    /// ewc: rows of a task that its Fisher information is estimated on.
    fisher_rows: usize = 256;
    /// lwf: weight of saying about earlier labels what was said before.
    lwf_lambda: f64 = 1.0;
    /// lwf: temperature of what was said.
    lwf_temperature: f64 = 2.0;
    /// o-lora: weight of being orthogonal to the LoRAs of earlier tasks.
    o_lora_lambda: f64 = 0.5;
    /// lae: part of a task's steps in which the module is frozen and the head's new rows learn (from the second task on).
    lae_freeze: f64 = 0.6;
    /// lae: what a task's steps leave of the offline module.
    lae_keep: f64 = 0.9;
    /// lae: which module answers: both (the surer one), online, offline.
    lae_experts: String = "both".into();
    /// Replay methods: training rows of each class that are kept; 0 keeps all, -1 is the method's own (all for static methods, 20 for others).
    memory: i64 = -1;
    /// Replay methods: which rows are kept: kmeans, herding, reservoir, random.
    select: String = "kmeans".into();
    /// emr, ea-emr: times that each kept row is seen in an epoch.
    memory_repeat: usize = 5;
    /// ea-emr: pull of the alignment to the one before, as a part of the features' mean square.
    align_ridge: f64 = 0.1;
    /// crl: temperature of the contrast.
    crl_temperature: f64 = 0.1;
    /// crl: rows of the bank that a step is compared with.
    crl_bank: usize = 500;
    /// When test rows are scored: stages (after each), last.
    score: String = "stages".into();
    /// What the run is called in reports; empty is by its method and what it is made of.
    name: String = String::new();
}

/// Names of presets.
pub const PRESETS: [&str; 1] = ["conpet-paper"];

impl Config {
    /// Defaults, or a TOML file over them.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, or has a key that is no setting.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        Self::default().over(file)
    }

    /// Settings that belong together, by name: [`PRESETS`].
    ///
    /// # Errors
    /// If there is no preset of this name.
    pub fn preset(name: &str) -> Result<Self> {
        match name {
            "conpet-paper" => Ok(Self::conpet_paper()),
            _ => Err(Error::new(Code::Value, format!("--preset {name} is not allowed"))
                .hint(format!("--preset takes {}", PRESETS.join(", ")))),
        }
    }

    /// A TOML file over these settings.
    ///
    /// # Errors
    /// See [`Config::load`].
    pub fn over(self, file: Option<&Path>) -> Result<Self> {
        let Some(path) = file else { return Ok(self) };
        let text = conpet_formats::fs::read_text(path)?;
        let bad = |e: toml::de::Error| {
            Error::new(Code::Value, e.to_string().trim_end().to_owned())
                .in_file(path)
                .hint("conpet-train stream --print-config shows every setting and its default")
        };
        // For the message: it shows the line of an unknown key or a wrong value.
        let _: Self = toml::from_str(&text).map_err(bad)?;
        let given: toml::Table = toml::from_str(&text).map_err(bad)?;
        let mut all = toml::Table::try_from(self).map_err(|e| Error::new(Code::Value, e.to_string()))?;
        all.extend(given);
        all.try_into().map_err(bad)
    }

    /// One setting, by its name here and its value as TOML or a bare word.
    ///
    /// # Errors
    /// If there is no such setting, or the value is of another kind.
    pub fn set(self, name: &str, value: &str) -> Result<Self> {
        let value = format!("x = {value}")
            .parse::<toml::Table>()
            .ok()
            .and_then(|mut t| t.remove("x"))
            .unwrap_or_else(|| toml::Value::String(value.to_owned()));
        let bad = |e: String| {
            Error::new(Code::Value, format!("{name}={value}: {}", e.trim_end()))
                .hint("conpet-train stream --print-config shows every setting and its default")
        };
        let mut all = toml::Table::try_from(self).map_err(|e| bad(e.to_string()))?;
        // A float may be given as a whole number.
        let value = match (all.get(name), &value) {
            (None, _) => return Err(bad("there is no such setting".into())),
            (Some(toml::Value::Float(_)), toml::Value::Integer(v)) => toml::Value::Float(*v as f64),
            (Some(toml::Value::String(_)), v) if !v.is_str() => toml::Value::String(v.to_string()),
            _ => value.clone(),
        };
        all.insert(name.to_owned(), value);
        all.try_into().map_err(|e: toml::de::Error| bad(e.message().to_owned()))
    }

    /// Dynamic ConPET with the hyper-parameters of the published code (Song et al. 2023; those of FewRel
    /// where they differ by data set). docs/methods.md says what is not as published.
    fn conpet_paper() -> Self {
        Self {
            selector: "conpet".into(),
            trunk: 0,
            rank: 4,
            alpha: 1.0,
            sites: "attn_q,attn_k".into(),
            head_feature: "last:last".into(),
            epochs: 10,
            batch: 8,
            lr: 2e-4,
            head_lr: 1.0,
            adam_eps: 1e-4,
            weight_decay: 0.01,
            warmup: 0.0,
            schedule: "constant".into(),
            clip: 1.0,
            seed: 100,
            top_k: 1,
            margin: 0.0,
            max_len: 128,
            replay_limit: 400,
            ..Self::default()
        }
    }

    /// Checks ranges and names.
    ///
    /// # Errors
    /// Names the setting, its value and what is allowed.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        let bad = |name: &str, value: &dyn std::fmt::Display, allowed: &str| {
            Err(Error::new(Code::Value, format!("--{name} {value} is not allowed"))
                .hint(format!("--{name} takes {allowed}")))
        };
        let Some(method) = method::by_name(&self.method) else {
            return bad("method", &self.method, &method::names(|_| true));
        };
        crate::selectors::by_name(&self.selector)?;
        if !centroid::SPACES.contains(&self.centroid.as_str()) {
            return bad("centroid", &self.centroid, &centroid::SPACES.join(", "));
        }
        for (name, v, least) in
            [("random-features", self.random_features, 0), ("selector-hidden", self.selector_hidden, 1)]
        {
            if !(least..=hidden::MOST).contains(&v) {
                return bad(name, &v, &format!("{least} to {}", hidden::MOST));
            }
        }
        if self.selector_memory == 0 || self.selector_steps == 0 {
            return bad("selector-memory or --selector-steps", &0, "at least 1");
        }
        let linear = self.head_kind()?.is_linear();
        if method.labelled && !linear {
            let others = method::names(|m| !m.labelled);
            return bad("head", &self.head, &format!("linear with --method {}, any with {others}", self.method));
        }
        if self.trunk < -1 || self.trunk >= spec.n_layer as i64 {
            return bad("trunk", &self.trunk, &format!("-1 (a third) or 0 to {}", spec.n_layer - 1));
        }
        if self.rank == 0 || self.rank > 4096 {
            return bad("rank", &self.rank, "1 to 4096");
        }
        if !["cosine", "constant"].contains(&self.schedule.as_str()) {
            return bad("schedule", &self.schedule, "cosine or constant");
        }
        if !["stages", "last"].contains(&self.score.as_str()) {
            return bad("score", &self.score, "stages or last");
        }
        if !method::replay::choose::WAYS.contains(&self.select.as_str()) {
            return bad("select", &self.select, &method::replay::choose::WAYS.join(", "));
        }
        if self.memory < -1 {
            return bad("memory", &self.memory, "-1 (the method's own), 0 (all) or a number of rows");
        }
        if !["both", "online", "offline"].contains(&self.lae_experts.as_str()) {
            return bad("lae-experts", &self.lae_experts, "both, online or offline");
        }
        if !["auto", "dense", "quant"].contains(&self.weights.as_str()) {
            return bad("weights", &self.weights, "auto, dense or quant");
        }
        for (name, v) in [
            ("weight-decay", self.weight_decay),
            ("clip", self.clip),
            ("ngram-weight", self.ngram_weight),
            ("ewc-lambda", self.ewc_lambda),
            ("lwf-lambda", self.lwf_lambda),
            ("o-lora-lambda", self.o_lora_lambda),
        ] {
            if !(0.0..1e6).contains(&v) {
                return bad(name, &v, "0 or a positive number");
            }
        }
        for (name, v) in [
            ("lr", self.lr),
            ("alpha", self.alpha),
            ("head-lr", self.head_lr),
            ("adam-eps", self.adam_eps),
            ("lwf-temperature", self.lwf_temperature),
            ("align-ridge", self.align_ridge),
            ("crl-temperature", self.crl_temperature),
        ] {
            if !(v > 0.0 && v < 1e6) {
                return bad(name, &v, "a positive number");
            }
        }
        for (name, v) in [
            ("shrinkage", self.shrinkage),
            ("dropout", self.dropout),
            ("margin", self.margin),
            ("warmup", self.warmup),
            ("abstain", self.abstain),
            ("lae-freeze", self.lae_freeze),
            ("lae-keep", self.lae_keep),
        ] {
            if !(0.0..=1.0).contains(&v) {
                return bad(name, &v, "a number from 0 to 1");
            }
        }
        if self.epochs == 0 || self.batch == 0 || self.top_k == 0 || self.fisher_rows == 0 {
            return bad("epochs, --batch, --top-k or --fisher-rows", &0, "at least 1");
        }
        if self.memory_repeat == 0 || self.crl_bank == 0 || self.replay_limit == 0 {
            return bad("memory-repeat, --crl-bank or --replay-limit", &0, "at least 1");
        }
        if self.max_len < 8 || self.max_len > spec.context {
            return bad("max-len", &self.max_len, &format!("8 to the base's context of {}", spec.context));
        }
        self.head_feature(spec)?.check(spec.n_layer as u32)?;
        self.selector_feature(spec)?.check(spec.n_layer as u32)?;
        let pet = self.pet(spec)?;
        if self.method == "o-lora" && pet.only_lora().is_none() {
            return bad("pet", &self.pet, "lora and nothing else with --method o-lora");
        }
        if self.method == "lae" && pet.parts().iter().any(|p| p.pet.is_reparameterised()) {
            return bad("pet", &self.pet, "prefix without mid with --method lae, which scales the pairs themselves");
        }
        self.sites(spec).map(drop)
    }

    /// Steps of a training run on a mixture of new and old rows: the same for every task.
    pub fn budget(&self) -> u64 {
        self.epochs as u64 * (self.replay_limit * 4 / 5).max(1)
    }

    /// Layers of the trunk.
    pub fn trunk(&self, spec: &ModelSpec) -> usize {
        usize::try_from(self.trunk).unwrap_or(spec.n_layer / 3)
    }

    /// What a module is.
    ///
    /// # Errors
    /// If `--pet`, `--params` or `--sites` is malformed, or they do not fit each other or the base.
    pub fn pet(&self, spec: &ModelSpec) -> Result<PetSpec> {
        let at = Places::parse(&self.sites, ',').map_err(|e| e.in_section("--sites"))?;
        if at.is_empty() || !at.within(Places::LINEARS) {
            return Err(Error::new(Code::Value, format!("--sites names {:?}", self.sites))
                .hint(format!("sites are {}", Places::LINEARS.to_string().replace('/', ", "))));
        }
        let lora = Lora { rank: self.rank, alpha: self.alpha, scaling: Scaling::AlphaOverRank };
        let pet = PetSpec::parse(&self.pet, lora, at)?;
        if self.params.is_empty() {
            return Ok(pet);
        }
        let budget: Budget = self.params.parse().map_err(|e: Error| e.in_section("--params"))?;
        pet.sized(spec, self.trunk(spec), budget).map_err(|e| e.in_section("--params"))
    }

    /// Full names of the sites, sorted.
    ///
    /// # Errors
    /// As [`Config::pet`]; also if the module cannot act above the trunk.
    pub fn sites(&self, spec: &ModelSpec) -> Result<Vec<String>> {
        self.pet(spec)?.sites(spec, self.trunk(spec))
    }

    /// How labels are told apart.
    pub fn head_kind(&self) -> Result<HeadKind> {
        HeadKind::ALL.into_iter().find(|k| k.name() == self.head).ok_or_else(|| {
            let names = HeadKind::ALL.map(HeadKind::name);
            Error::new(Code::Value, format!("--head {} is not allowed", self.head))
                .hint(format!("--head takes {}", names.join(", ")))
        })
    }

    /// What heads read.
    pub fn head_feature(&self, spec: &ModelSpec) -> Result<FeatureSpec> {
        let f = self.feature(&self.head_feature, StateNorm::Output, spec)?;
        match f.parts.iter().find(|p| p.layer as usize != spec.n_layer) {
            None => Ok(f),
            Some(p) => Err(Error::new(Code::Value, format!("--head-feature reads layer {}", p.layer))
                .hint("a trained head reads the last layer: write last:POOL")),
        }
    }

    /// What the selector reads.
    pub fn selector_feature(&self, spec: &ModelSpec) -> Result<FeatureSpec> {
        self.feature(&self.selector_feature, StateNorm::Rms, spec)
    }

    fn feature(&self, text: &str, norm: StateNorm, spec: &ModelSpec) -> Result<FeatureSpec> {
        let part = |p: &str| -> Result<FeaturePart> {
            let bad = || {
                Error::new(Code::Value, format!("feature part {p:?} is not LAYER:POOL"))
                    .hint("for example 10:mean+10:last, trunk:mean or last:marker:[MASK]")
            };
            let (layer, pool) = p.split_once(':').ok_or_else(bad)?;
            let layer = match layer {
                "trunk" => self.trunk(spec) as u32,
                "last" => spec.n_layer as u32,
                n => n.parse().map_err(|_| bad())?,
            };
            Ok(FeaturePart { layer, pool: Pool::parse(pool)? })
        };
        Ok(FeatureSpec { norm, parts: text.split('+').map(part).collect::<Result<_>>()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_and_flags_overlay_and_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("c.toml");
        std::fs::write(&file, "rank = 4\nlr = 0.5\n").unwrap();
        let flags = Flags { lr: Some(0.25), ..Flags::default() };
        let c = flags.overlay(Config::load(Some(&file)).unwrap());
        assert_eq!((c.rank, c.lr, c.epochs), (4, 0.25, 3));
        std::fs::write(&file, "rnak = 4").unwrap();
        let e = Config::load(Some(&file)).unwrap_err().to_string();
        assert!(e.contains("rnak") && e.contains("c.toml"), "{e}");
        // A file over a preset leaves the rest of the preset.
        std::fs::write(&file, "rank = 2\n").unwrap();
        let c = Config::preset("conpet-paper").unwrap().over(Some(&file)).unwrap();
        assert_eq!((c.rank, c.alpha, c.selector.as_str(), c.adam_eps), (2, 1.0, "conpet", 1e-4));
        assert!(Config::preset("paper").unwrap_err().to_string().contains("conpet-paper"));
        let printed = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::from_str::<Config>(&printed).unwrap(), Config::default());
    }
}
