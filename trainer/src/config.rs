//! All settings of a run as one value: the defaults, then a TOML file over them, then flags.

mod presets;
mod text;

use crate::method::{self, Method};
use crate::selectors;
use crate::services::module::Modules;
use crate::services::{self, Resolved};
use crate::settings::automatic::Text;
use crate::settings::range::any;
use crate::settings::{Group, join, settings};
use conpet_formats::feature::FeatureSpec;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::{Code, Error, Result};
use serde::{Deserialize, Serialize};

pub use presets::PRESETS;

settings! { "Run" RunSettings RunFlags {
    /// How the stream is learned: dynamic (a module for each task, and a selector), per-task (the same, the task named by the caller); with one shared module: sequential (no protection), joint (all data at once), ewc, lwf, o-lora, lae, and with replay emr, ea-emr, crl, static-emr, static-ea-emr, static-crl (docs/methods.md).
    method: String = "dynamic".into(), any();
    /// Worker threads; 0 is one for each processor.
    threads: usize = 0, any();
    /// When test rows are scored.
    score: Score = Score::Stages, any();
    /// Name of the run in reports; by default made from the method and the settings that are not the usual ones.
    name: Text = Text::default(), any();
}}

/// When test rows are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Score {
    /// After each stage.
    Stages,
    /// After the last one.
    Last,
}

join! {
    /// Every setting of a run.
    Config Flags {
        /// Settings of the run itself.
        run: RunSettings,
        /// What is trained and how, for all methods.
        services: services::Settings,
        /// Settings of the methods, and of the selectors that `dynamic` fits.
        methods: method::Settings,
    } in effect: Config::with_effect
}

impl Config {
    /// The method.
    ///
    /// # Errors
    /// If there is no method of that name.
    pub fn method(&self) -> Result<Method> {
        method::by_name(&self.run.method)
    }

    /// Checks all settings and resolves them for a base.
    ///
    /// # Errors
    /// Names the setting, its value and what is allowed.
    pub fn check(&self, spec: &ModelSpec) -> Result<Resolved> {
        let method = self.method()?;
        Group::check(self)?;
        let resolved = self.services.resolve(spec)?;
        self.methods.dynamic.feature(spec, resolved.trunk)?;
        method.check(&resolved)?;
        if self.services.module.modules == Modules::None {
            let selector = &self.methods.dynamic.common.selector;
            if !method.traits.selects || !selectors::by_name(selector)?.kind.scores_classes() {
                let what = format!(
                    "--modules none needs a selector that scores labels, not --method {} with {selector}",
                    method.name
                );
                return Err(Error::new(Code::Unsupported, what).hint("use --method dynamic with --selector lda"));
            }
        }
        Ok(resolved)
    }

    /// The feature that the selector reads from the trunk; `None` if the method has no selector that does.
    ///
    /// # Errors
    /// If there is no such selector, or its feature is malformed.
    pub fn selector_feature(&self, spec: &ModelSpec, trunk: usize) -> Result<Option<FeatureSpec>> {
        if self.method()?.traits.selects { self.methods.dynamic.feature(spec, trunk) } else { Ok(None) }
    }

    /// Names of the settings that have an effect on a run with these values.
    fn with_effect(&self) -> Vec<&'static str> {
        let Ok(method) = self.method() else { return Self::keys() };
        let own = (method.in_effect)(&self.methods);
        let selects_by_replay = own.contains(&"selector") && self.methods.dynamic.common.selector == "conpet";
        let replays = method.traits.replays || selects_by_replay;
        let replay = services::replay::Settings::keys();
        // Where no module is trained, the seed draws a sample of rows and nothing else of a module matters.
        let kept = [&["modules", "trunk", "seed"], services::prepare::Settings::keys().as_slice()].concat();
        let trains = self.services.module.modules != Modules::None;
        let services = self.services.in_effect().into_iter().filter(|k| replays || !replay.contains(k));
        let services = services.filter(|k| trains || kept.contains(k));
        RunSettings::keys().into_iter().chain(services).chain(own).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::method::METHODS;
    use crate::selectors::SELECTORS;
    use conpet_formats::gguf::Gguf;
    use std::collections::BTreeSet;

    /// Fails if a setting has no effect on any run, or if a list of effective settings names something that is
    /// not a setting.
    #[test]
    fn every_setting_has_an_effect_on_some_run_and_not_on_all() {
        let runs: Vec<BTreeSet<&str>> = METHODS
            .iter()
            .flat_map(|m| SELECTORS.iter().map(move |s| (m.name, s.kind.name())))
            .map(|(method, selector)| {
                let mut c = Config::default();
                c.run.method = method.into();
                c.methods.dynamic.common.selector = selector.into();
                c.in_effect().into_iter().collect()
            })
            .collect();
        let all: BTreeSet<&str> = Config::keys().into_iter().collect();
        assert_eq!(runs.iter().flatten().copied().collect::<BTreeSet<_>>(), all);
        for key in ["ewc_lambda", "memory", "selector", "margin", "ngram_weight", "selector_hidden", "lae_keep"] {
            assert!(runs.iter().any(|r| !r.contains(key)), "{key}");
        }
        let mut quick = Config::default();
        quick.services.module.modules = Modules::None;
        let quick: BTreeSet<&str> = quick.in_effect().into_iter().collect();
        for key in ["modules", "trunk", "seed", "max_len", "subset", "ngram_weight", "abstain", "threads", "score"] {
            assert!(quick.contains(key), "{key}");
        }
        for key in ["epochs", "lr", "batch", "pet", "rank", "sites", "head", "head_lr", "checkpoint_every", "memory"] {
            assert!(!quick.contains(key), "{key} has no effect where nothing is trained");
        }
    }

    #[test]
    fn labels_by_the_closed_form_take_a_selector_that_scores_them() {
        let spec = ModelSpec::from_gguf(
            &Gguf::parse(&conpet_formats::tiny::base(&conpet_formats::tiny::TinyConfig::default()).unwrap()).unwrap(),
        )
        .unwrap();
        let check = |settings: &str| {
            let with = |c: Config, one: &str| {
                let (name, value) = one.split_once('=').unwrap();
                c.set(name, value).unwrap()
            };
            settings.split_whitespace().fold(Config::default(), with).check(&spec)
        };
        for selector in SELECTORS.iter().filter(|s| s.kind.scores_classes()) {
            check(&format!("modules=none selector={}", selector.kind.name())).unwrap();
        }
        for other in ["method=per-task", "method=ewc", "selector=uniform", "selector=task", "selector=conpet"] {
            check(other).unwrap();
            let e = check(&format!("modules=none {other}")).unwrap_err();
            let named = other.split_once('=').unwrap().1;
            assert!(e.to_string().contains("--modules none") && e.to_string().contains(named), "{e}");
        }
    }
}
