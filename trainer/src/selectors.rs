//! Selectors: they are fitted here so that the runtime can choose a module from the input.
//!
//! Each kind has a file of its own, which defines its `Settings` and its `fit`, and is listed here. The closed
//! forms ([`lda`], [`ridge`], [`centroid`]) need only streamed sufficient statistics: they are exact for any
//! order of tasks, and no earlier row is needed again. [`linear`] and [`mlp`] keep a bounded [`memory`] of
//! features in the bundle; [`conpet`] needs the older rows themselves.

mod calibrate;
pub mod centroid;
pub mod conpet;
pub mod fitting;
pub mod gaussian;
pub mod lda;
pub mod linear;
pub mod memory;
pub mod mlp;
pub mod ngrams;
pub mod ridge;
pub mod sample;
pub mod softmax;
pub mod solve;
pub mod stats;
pub mod unfitted;
pub mod weights;

pub use fitting::Scores;
pub use memory::Memory;
pub use ngrams::Counts;
pub use stats::Stats;

use crate::data::Prepared;
use crate::services::{Services, module};
use crate::settings::range::refusal;
use crate::settings::{Group, join};
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::bundle::manifest::SelectorEntry;
use conpet_formats::decimal::Decimal;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::refusal::SHARE;
use conpet_formats::selector::SelectorKind;
use conpet_formats::tensors::Tensors;
use fitting::Fit;

/// Fits the draft's selector after a task was added to it; false if it was stopped.
pub type Renew = fn(&mut Services<'_>, &Settings, &mut Draft, &Fit<'_>) -> Result<bool>;

/// The selector's log posterior of the newest task's labels for some of its training rows, each as if it had not been
/// counted; `None` if it scores no labels.
pub type LeftOut = fn(&Services<'_>, &Draft, &Prepared, &[usize]) -> Result<Option<Vec<Vec<f32>>>>;

/// One kind of selector.
#[derive(Debug, Clone, Copy)]
pub struct Selector {
    /// The kind, which has its name in flags and bundles.
    pub kind: SelectorKind,
    /// Fits the selector.
    pub fit: Renew,
    /// What it says of rows left out.
    pub left_out: LeftOut,
    /// It needs the rows of earlier tasks, so a task cannot be added without the whole stream.
    pub needs_old_rows: bool,
    /// Those of the shared settings that have an effect on it.
    reads: &'static [&'static str],
    /// The names of its own settings.
    own: fn(&Settings) -> Vec<&'static str>,
}

const NOTHING: &[&str] = &["selector"];
const ROUTES: &[&str] = &["selector", "top_k", "margin"];
const CLOSED: &[&str] = &["selector", "selector_feature", "top_k", "margin", "abstain", "shrinkage"];
const TRAINED: &[&str] =
    &["selector", "selector_feature", "top_k", "margin", "abstain", "selector_memory", "selector_steps"];

/// Lists the selectors: `file: Kind (needs older rows) settings it reads, ..;` for each file, which may fit
/// several kinds.
macro_rules! selectors {
    ($($file:ident: $($kind:ident $old:literal $reads:ident),+;)*) => {
        join! {
            /// The settings of all selectors.
            Settings Flags {
                /// Settings that several kinds read.
                common: fitting::Settings,
                $(
                    #[doc = concat!("Those of `", stringify!($file), "`.")]
                    $file: $file::Settings,
                )*
            } in effect: in_effect
        }

        /// All kinds that `--selector` accepts.
        pub const SELECTORS: &[Selector] = &[$($(Selector {
            kind: SelectorKind::$kind,
            fit: |services, all, draft, new| $file::fit(services, &all.$file, draft, new),
            left_out: left_out(SelectorKind::$kind),
            needs_old_rows: $old,
            reads: $reads,
            own: |all| all.$file.in_effect(),
        },)+)*];
    };
}

selectors! {
    lda: Lda false CLOSED;
    ridge: Ridge false CLOSED;
    centroid: Centroid false CLOSED;
    linear: Linear false TRAINED;
    mlp: Mlp false TRAINED;
    conpet: Conpet true ROUTES;
    unfitted: Uniform false NOTHING, Task false NOTHING;
}

impl Selector {
    /// True if it is calibrated on validation rows.
    pub fn asks_for_valid(&self) -> bool {
        self.kind.scores_classes() && self.kind != SelectorKind::Lda
    }
}

/// How a kind leaves rows out.
const fn left_out(kind: SelectorKind) -> LeftOut {
    match kind {
        SelectorKind::Lda => lda::left_out,
        // Those that score labels are calibrated on validation rows, which are asked for before they are fitted.
        _ => |_, _, _, _| Ok(None),
    }
}

/// Names of the settings that have an effect on the chosen selector.
fn in_effect(settings: &Settings) -> Vec<&'static str> {
    match by_name(&settings.common.selector) {
        Ok(s) => [s.reads, &(s.own)(settings)].concat(),
        Err(_) => Vec::new(),
    }
}

/// The selector with this name.
///
/// # Errors
/// If there is none; the message lists those there are.
pub fn by_name(name: &str) -> Result<Selector> {
    SELECTORS.iter().copied().find(|s| s.kind.name() == name).ok_or_else(|| {
        let names: Vec<_> = SELECTORS.iter().map(|s| s.kind.name()).collect();
        refusal("selector", &name, &names.join(", "))
    })
}

impl Settings {
    /// The feature that the selector reads from the trunk; `None` if it reads none.
    ///
    /// # Errors
    /// If there is no such selector, or `--selector-feature` is malformed.
    pub fn feature(&self, spec: &ModelSpec, trunk: usize) -> Result<Option<FeatureSpec>> {
        let feature = self.common.feature(spec, trunk).map_err(|e| e.in_section("--selector-feature"))?;
        Ok(by_name(&self.common.selector)?.kind.scores_classes().then_some(feature))
    }

    /// Settings in which those that all tasks of a bundle share are taken from its selector's entry and payload.
    ///
    /// # Errors
    /// If the payload cannot be read.
    pub fn inherited(mut self, entry: &SelectorEntry, payload: Option<&[u8]>, hidden: usize) -> Result<Self> {
        self.common.selector = entry.kind.name().into();
        let Some((feature, payload)) = entry.feature.as_ref().zip(payload) else { return Ok(self) };
        self.common.selector_feature = module::feature_text(feature);
        (self.common.margin, self.common.top_k) = (entry.margin.to_f64(), entry.top_k);
        if let Some(share) = Tensors::parse(payload)?.get(SHARE).and_then(|t| t.to_f32().first().copied()) {
            self.common.abstain = lda::as_stored(share);
        }
        match entry.kind {
            SelectorKind::Lda => self.lda.ngram_weight = lda::stored_weight(payload)?,
            SelectorKind::Ridge => self.ridge.random_features = ridge::stored_units(payload, feature.dim(hidden))?,
            _ => {}
        }
        Ok(self)
    }

    /// The same settings as a bundle would spell them.
    ///
    /// # Errors
    /// If `--selector-feature` is malformed.
    pub fn canonical(&self, spec: &ModelSpec, trunk: usize) -> Result<Self> {
        let mut out = self.clone();
        let feature = self.common.feature(spec, trunk)?;
        out.common.selector_feature = module::feature_text(&feature);
        out.common.margin = Decimal::from_f64(self.common.margin).to_f64();
        out.common.abstain = lda::as_stored(self.common.abstain as f32);
        out.lda.ngram_weight = lda::as_stored(self.lda.ngram_weight as f32);
        Ok(out)
    }
}
