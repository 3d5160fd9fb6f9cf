//! `adapter_config.json`: every setting is used, known to change nothing, or refused by name.

use crate::error::clip;
use crate::exchange::names;
use crate::model_spec::ModelSpec;
use crate::pet::{Place, Site};
use crate::{Code, Error, Result};
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Longest settings, in bytes.
const CAP: usize = 1 << 20;
/// Most names in a list or a pattern: more than there are linears in any base.
const NAMES_CAP: usize = 8192;

/// Settings that say how an adapter was made, and nothing of what it computes.
const SILENT: [&str; 22] = [
    "base_model_name_or_path",
    "corda_config",
    "encoder_hidden_size",
    "eva_config",
    "inference_mode",
    "init_ia3_weights",
    "init_weights",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "num_attention_heads",
    "num_layers",
    "peft_version",
    "prefix_projection",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "qalora_group_size",
    "revision",
    "token_dim",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
    "use_cache",
];

/// What to do about settings that are refused, by name.
const HINTS: [(&str, &str); 6] = [
    (
        "use_dora",
        "DoRA divides by the norms of the base's rows, which no PET kind here does; train plain LoRA, or turn it into one with PEFT's convert_to_lora",
    ),
    (
        "modules_to_save",
        "whole layers beside the adapter, such as a head or embeddings, have no place in a module; train without them",
    ),
    ("lora_bias", "train without lora_bias"),
    ("fan_in_fan_out", "only models of transposed linears (GPT-2) need it; no base of this release is one"),
    ("trainable_token_indices", "the base's embeddings never change; train without new tokens"),
    ("alora_invocation_tokens", "a module acts on every token; train plain LoRA"),
];

/// The settings that have not been used yet.
pub(super) struct Config(BTreeMap<String, Value>);

impl Config {
    /// Reads the JSON object; a name that occurs twice is refused.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() > CAP {
            return Err(Error::new(Code::Cap, format!("{} bytes of settings, cap {CAP}", bytes.len())));
        }
        let object: Unique = serde_json::from_slice(bytes)
            .map_err(|e| Error::new(Code::Value, format!("not a JSON object of settings: {e}")))?;
        Ok(Self(object.0))
    }

    fn take(&mut self, key: &str) -> Option<Value> {
        self.0.remove(key).filter(|v| !v.is_null())
    }

    fn wrong(key: &str, value: &Value, want: &str) -> Error {
        Error::new(Code::Value, format!("{key} is {}, not {want}", clip(&value.to_string())))
    }

    /// Takes a setting that is a text.
    pub(super) fn text(&mut self, key: &str) -> Result<Option<String>> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(v) => Err(Self::wrong(key, &v, "a text")),
        }
    }

    /// Takes a setting that is a whole number from 1 to 2^31.
    pub(super) fn count(&mut self, key: &str) -> Result<Option<usize>> {
        match self.take(key) {
            None => Ok(None),
            Some(v) => match v.as_u64().filter(|n| (1..=1 << 31).contains(n)) {
                Some(n) => Ok(Some(n as usize)),
                None => Err(Self::wrong(key, &v, "a whole number from 1")),
            },
        }
    }

    /// Takes a setting that is a positive number.
    pub(super) fn number(&mut self, key: &str) -> Result<Option<f64>> {
        self.take(key).map(|v| positive(key, &v)).transpose()
    }

    /// Takes a setting that is true or false; one that is absent is false.
    pub(super) fn flag(&mut self, key: &str) -> Result<bool> {
        match self.take(key) {
            None => Ok(false),
            Some(Value::Bool(b)) => Ok(b),
            Some(v) => Err(Self::wrong(key, &v, "true or false")),
        }
    }

    /// The task and the class of model it was made for, which must be a decoder of this base's family.
    pub(super) fn check_task(&mut self, spec: &ModelSpec) -> Result<()> {
        names::check_base(spec)?;
        if let Some(task) = self.text("task_type")?.filter(|t| t != "CAUSAL_LM") {
            return Err(Error::new(Code::Unsupported, format!("task_type is {:?}, not \"CAUSAL_LM\"", clip(&task)))
                .hint(
                    "a classifier's head stands in modules_to_save and cannot be imported; train one with conpet-train",
                ));
        }
        let mapping = self.take("auto_mapping");
        let class = mapping.as_ref().and_then(|m| m.get("base_model_class")).and_then(Value::as_str);
        match class.filter(|c| !spec.is_class(c)) {
            Some(class) => Err(Error::new(
                Code::BaseMismatch,
                format!("the adapter was made for a {:?}, this base is a {}", clip(class), spec.arch),
            )
            .hint("give the base that the adapter was trained on")),
            None => Ok(()),
        }
    }

    /// Refuses any `bias` but `none`.
    pub(super) fn check_bias(&mut self) -> Result<()> {
        match self.text("bias")?.filter(|b| b != "none") {
            Some(b) => Err(Error::new(Code::Unsupported, format!("bias is {:?}, not \"none\"", clip(&b)))
                .hint("bases of this release have no biases to train; train with bias=\"none\"")),
            None => Ok(()),
        }
    }

    /// Refuses start values that were taken out of the base's own weights.
    pub(super) fn check_start(&mut self) -> Result<()> {
        match self.take("init_lora_weights") {
            None | Some(Value::Bool(_)) => Ok(()),
            Some(Value::String(s)) if ["gaussian", "eva", "orthogonal"].contains(&s.as_str()) => Ok(()),
            Some(v) => Err(Error::new(Code::Unsupported, format!("init_lora_weights is {}", clip(&v.to_string())))
                .hint("such a start changes the base's weights too; save the adapter with path_initial_model_for_weight_conversion, which makes a plain LoRA of it")),
        }
    }

    /// The linears that the settings name, of which a complete adapter has all and no other; `None` where
    /// they are a regular expression, which is not run.
    pub(super) fn targets(&mut self, spec: &ModelSpec) -> Result<Option<BTreeSet<Site>>> {
        let wanted = self.names("target_modules")?;
        let excluded = self.names("exclude_modules")?;
        let layers = match self.take("layers_to_transform") {
            None => None,
            Some(Value::Array(a)) if a.is_empty() => None,
            Some(Value::Array(a)) => Some(a.iter().map(|v| layer(spec, v)).collect::<Result<BTreeSet<_>>>()?),
            Some(v) => Some(BTreeSet::from([layer(spec, &v)?])),
        };
        match self.take("layers_pattern") {
            None => {}
            Some(v) if v == "" || v == "layers" || v == Value::Array(vec![]) || v == serde_json::json!(["layers"]) => {}
            Some(v) => {
                return Err(Error::new(Code::Unsupported, format!("layers_pattern is {}", clip(&v.to_string())))
                    .hint("in bases of this release layers are called \"layers\""));
            }
        }
        let (Names::List(wanted), Names::List(excluded)) = (wanted, excluded) else { return Ok(None) };
        if wanted.is_empty() {
            return Err(Error::new(Code::Missing, "target_modules names nothing"));
        }
        let mut out = BTreeSet::new();
        let mut unmatched: BTreeSet<&String> = wanted.iter().collect();
        for layer in 0..spec.n_layer {
            for place in names::PLACES {
                let site = Site { layer, place };
                let path = names::path(site)?;
                let ends = |t: &String| path.ends_with(t.as_str()) && path[..path.len() - t.len()].ends_with('.');
                let whole = wanted.contains(&path);
                let in_layers = layers.as_ref().is_none_or(|l| l.contains(&layer));
                unmatched.retain(|t| **t != path && !ends(t));
                // As PEFT: a full name holds whatever the layers.
                let held = whole || wanted.iter().any(ends) && in_layers;
                if held && !excluded.iter().any(|t| *t == path || ends(t)) {
                    out.insert(site);
                }
            }
        }
        match unmatched.first() {
            Some(t) => Err(Error::new(Code::Unsupported, format!("target {:?} is no linear a module can act at", clip(t)))
                .hint("a module acts at q, k, v, o, gate, up and down projections of layers; lm_head and embeddings cannot be imported")),
            None => Ok(Some(out)),
        }
    }

    /// (IA)³'s list of modules whose input is scaled. It repeats what the tensors' shapes say, so it only
    /// has to be a list.
    pub(super) fn feedforward(&mut self) -> Result<()> {
        self.names("feedforward_modules").map(|_| ())
    }

    fn names(&mut self, key: &str) -> Result<Names> {
        match self.take(key) {
            None => Ok(Names::List(BTreeSet::new())),
            Some(Value::String(_)) => Ok(Names::Expression),
            Some(Value::Array(a)) => {
                check_count(key, a.len())?;
                let text = |v: Value| match v {
                    Value::String(s) => Ok(s),
                    other => Err(Self::wrong(key, &other, "a name")),
                };
                Ok(Names::List(a.into_iter().map(text).collect::<Result<_>>()?))
            }
            Some(v) => Err(Self::wrong(key, &v, "a list of names")),
        }
    }

    /// `rank_pattern` or `alpha_pattern`: values by module.
    pub(super) fn pattern(&mut self, key: &'static str) -> Result<Pattern> {
        let entries = match self.take(key) {
            None => Vec::new(),
            Some(Value::Object(o)) => {
                o.iter().map(|(n, v)| Ok((n.clone(), positive(key, v)?))).collect::<Result<_>>()?
            }
            Some(v) => return Err(Self::wrong(key, &v, "an object of numbers")),
        };
        check_count(key, entries.len())?;
        let plain = |n: &str| n.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.');
        match entries.iter().find(|(n, _)| !plain(n.strip_prefix('^').unwrap_or(n))) {
            Some((n, _)) => {
                Err(Error::new(Code::Unsupported, format!("{key} has the regular expression {:?}", clip(n)))
                    .hint("write the names of modules, such as model.layers.0.self_attn.q_proj"))
            }
            None => Ok(Pattern { key, entries }),
        }
    }

    /// Refuses what has not been used, unless it is off or changes nothing.
    ///
    /// # Errors
    /// `E_UNSUPPORTED`, naming the first setting that does.
    pub(super) fn finish(self) -> Result<()> {
        let off = |v: &Value| match v {
            Value::Null | Value::Bool(false) => true,
            Value::Array(a) => a.is_empty(),
            Value::Object(o) => o.is_empty(),
            _ => false,
        };
        match self.0.iter().find(|(k, v)| !off(v) && !SILENT.contains(&k.as_str())) {
            None => Ok(()),
            Some((key, value)) => {
                let hint = HINTS.iter().find(|h| h.0 == key).map_or("train the adapter without this setting", |h| h.1);
                Err(Error::new(
                    Code::Unsupported,
                    format!("the adapter sets {} to {}, which no module can hold", clip(key), clip(&value.to_string())),
                )
                .hint(hint))
            }
        }
    }
}

enum Names {
    List(BTreeSet<String>),
    Expression,
}

/// A setting whose value differs from module to module.
pub(super) struct Pattern {
    key: &'static str,
    entries: Vec<(String, f64)>,
}

impl Pattern {
    /// The value at a site: that of a name which is its own or the end of its own; with `^` before, its own.
    ///
    /// # Errors
    /// If names of different values fit, where PEFT takes the one written first.
    pub(super) fn at(&self, site: Site) -> Result<Option<f64>> {
        let path = names::path(site)?;
        let fits = |n: &str| match n.strip_prefix('^') {
            Some(n) => path == n,
            None => path.strip_suffix(n).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')),
        };
        let mut found = self.entries.iter().filter(|(n, _)| fits(n));
        let first = found.next();
        match (first, found.find(|o| Some(o.1) != first.map(|f| f.1))) {
            (Some(a), Some(b)) => Err(Error::new(
                Code::Value,
                format!("{} gives {path} both {} ({:?}) and {} ({:?})", self.key, a.1, clip(&a.0), b.1, clip(&b.0)),
            )
            .hint("write one value for each module")),
            _ => Ok(first.map(|f| f.1)),
        }
    }

    /// True if it names no module.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Bounds the names of a setting, each of which is compared with each linear.
fn check_count(key: &str, n: usize) -> Result<()> {
    match n > NAMES_CAP {
        true => Err(Error::new(Code::Cap, format!("{key} has {n} names, cap {NAMES_CAP}"))),
        false => Ok(()),
    }
}

fn positive(key: &str, v: &Value) -> Result<f64> {
    v.as_f64().filter(|x| x.is_finite() && *x > 0.0).ok_or_else(|| Config::wrong(key, v, "a positive number"))
}

fn layer(spec: &ModelSpec, v: &Value) -> Result<usize> {
    v.as_u64().map(|l| l as usize).filter(|l| *l < spec.n_layer).ok_or_else(|| {
        Error::new(
            Code::BaseMismatch,
            format!("layers_to_transform names {}, this base has {} layers", clip(&v.to_string()), spec.n_layer),
        )
        .hint("the adapter was made for a deeper base; give that base")
    })
}

/// A JSON object whose names occur once.
struct Unique(BTreeMap<String, Value>);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Unique;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut m: A) -> std::result::Result<Unique, A::Error> {
                let mut out = BTreeMap::new();
                while let Some((key, value)) = m.next_entry::<String, Value>()? {
                    let shown = clip(&key);
                    if out.insert(key, value).is_some() {
                        return Err(serde::de::Error::custom(format!("{shown:?} occurs twice")));
                    }
                }
                Ok(Unique(out))
            }
        }
        d.deserialize_map(Object)
    }
}

/// The settings of an adapter as PEFT saves them.
pub(super) struct Saved<'a> {
    pub(super) peft_type: &'static str,
    pub(super) base_name: Option<&'a str>,
    /// The settings of its kind, beside those that every kind has.
    pub(super) own: Vec<(&'static str, Value)>,
}

impl Saved<'_> {
    /// As PEFT writes it: sorted, indented by two.
    pub(super) fn json(self) -> String {
        let all: BTreeMap<&str, Value> = [
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", self.base_name.map_or(Value::Null, Into::into)),
            ("inference_mode", true.into()),
            ("modules_to_save", Value::Null),
            ("peft_type", self.peft_type.into()),
            ("revision", Value::Null),
            ("task_type", "CAUSAL_LM".into()),
        ]
        .into_iter()
        .chain(self.own)
        .collect();
        serde_json::to_string_pretty(&all).unwrap_or_default() + "\n"
    }
}

/// `target_modules` and `layers_to_transform` that mean exactly these sites: last words where every layer
/// of a set has the same, else full names. `layers` where the kind has that setting.
pub(super) fn targets_of(spec: &ModelSpec, sites: &[Site], layers: bool) -> Result<(Vec<String>, Option<Vec<usize>>)> {
    let places: BTreeSet<Place> = sites.iter().map(|s| s.place).collect();
    let rows: BTreeSet<usize> = sites.iter().map(|s| s.layer).collect();
    let all = rows.len() == spec.n_layer;
    if sites.len() == places.len() * rows.len() && (all || layers) {
        let short = places.iter().filter_map(|p| names::short(*p)).map(str::to_owned).collect();
        return Ok((short, (!all).then(|| rows.into_iter().collect())));
    }
    Ok((sites.iter().map(|s| names::path(*s)).collect::<Result<_>>()?, None))
}
