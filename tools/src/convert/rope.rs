//! Rotary embeddings: base frequency, and the ways to stretch them to longer texts.

use super::plan::Plan;
use conpet_formats::{Code, Result};
use serde_json::{Map, Value};

/// The settings of a rotary embedding: `rope_scaling` as transformers 4 writes it, or `rope_parameters` of version 5.
pub(super) struct Rope<'a> {
    key: &'static str,
    values: Option<&'a Map<String, Value>>,
    /// Base frequency.
    pub(super) theta: f64,
    /// `default`, `linear`, `yarn`, `llama3` or `longrope`.
    pub(super) kind: &'a str,
}

impl<'a> Rope<'a> {
    /// Reads the settings; `theta` is the family's base frequency where the file says nothing.
    pub(super) fn read(p: &Plan<'a>, theta: f64) -> Result<Self> {
        let (new, old) = (p.config.get("rope_parameters"), p.config.get("rope_scaling"));
        let (key, found) = if new.is_some() { ("rope_parameters", new) } else { ("rope_scaling", old) };
        let values = match found {
            None => None,
            Some(v) => match v.as_object() {
                Some(map) => Some(map),
                None => return Err(p.config.wrong(Code::Type, key, &format!("is {v} where an object is needed"))),
            },
        };
        let mut out = Self { key, values, theta, kind: "default" };
        let own = p.config.float("rope_theta")?;
        out.theta = out.number(p, "rope_theta")?.or(own).unwrap_or(theta);
        let kind = ["rope_type", "type"].iter().find_map(|k| values?.get(*k)?.as_str());
        out.kind = match kind.unwrap_or("default") {
            "su" => "longrope",
            other => other,
        };
        Ok(out)
    }

    /// A number of the settings.
    pub(super) fn number(&self, p: &Plan<'_>, name: &str) -> Result<Option<f64>> {
        match self.values.and_then(|v| v.get(name)).filter(|v| !v.is_null()) {
            None => Ok(None),
            Some(v) => match v.as_f64() {
                Some(x) => Ok(Some(x)),
                None => Err(p.config.wrong(Code::Type, self.key, &format!("has {name} {v} where a number is needed"))),
            },
        }
    }

    /// A number of the settings that must be there.
    pub(super) fn needed(&self, p: &Plan<'_>, name: &str) -> Result<f64> {
        self.number(p, name)?.ok_or_else(|| p.config.wrong(Code::Missing, self.key, &format!("lacks {name}")))
    }

    /// A list of numbers.
    pub(super) fn list(&self, p: &Plan<'_>, name: &str) -> Result<Vec<f32>> {
        let list = self.values.and_then(|v| v.get(name)?.as_array());
        let list = list.ok_or_else(|| p.config.wrong(Code::Missing, self.key, &format!("lacks the list {name}")))?;
        let number = |v: &Value| v.as_f64().map(|x| x as f32);
        let odd = || p.config.wrong(Code::Type, self.key, &format!("has something other than a number in {name}"));
        list.iter().map(|v| number(v).ok_or_else(odd)).collect()
    }

    /// Refuses a way to stretch that is not among these, and settings that it does not have.
    pub(super) fn only(&self, p: &Plan<'_>, kinds: &[&str]) -> Result<()> {
        let bad = |what: String| Err(p.config.wrong(Code::Unsupported, self.key, &what));
        if self.kind != "default" && !kinds.contains(&self.kind) {
            return bad(format!("has type {:?}, which this family is not run with", self.kind));
        }
        let always = ["rope_type", "type", "rope_theta"];
        let own: &[&str] = match self.kind {
            "linear" => &["factor"],
            "yarn" => &[
                "factor",
                "original_max_position_embeddings",
                "attention_factor",
                "extrapolation_factor",
                "beta_fast",
                "beta_slow",
            ],
            "llama3" => &["factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"],
            "longrope" => {
                &["long_factor", "short_factor", "original_max_position_embeddings", "factor", "partial_rotary_factor"]
            }
            _ => &["partial_rotary_factor"],
        };
        match self
            .values
            .into_iter()
            .flatten()
            .find(|(k, v)| !v.is_null() && !always.contains(&k.as_str()) && !own.contains(&k.as_str()))
        {
            Some((k, v)) => bad(format!("has {k} {v}, which is not known")),
            None => Ok(()),
        }
    }

    /// Writes the base frequency and the ways to stretch that are a few numbers.
    pub(super) fn write(&self, p: &mut Plan<'_>) -> Result<()> {
        match self.kind {
            "linear" => {
                p.str("rope.scaling.type", "linear");
                p.f32("rope.scaling.factor", self.needed(p, "factor")?);
            }
            "yarn" => {
                p.str("rope.scaling.type", "yarn");
                p.f32("rope.scaling.factor", self.needed(p, "factor")?);
                p.u32(
                    "rope.scaling.original_context_length",
                    self.needed(p, "original_max_position_embeddings")? as usize,
                );
                for (name, key) in [
                    ("extrapolation_factor", "yarn_ext_factor"),
                    ("attention_factor", "yarn_attn_factor"),
                    ("beta_fast", "yarn_beta_fast"),
                    ("beta_slow", "yarn_beta_slow"),
                ] {
                    if let Some(v) = self.number(p, name)? {
                        p.f32(&format!("rope.scaling.{key}"), v);
                    }
                }
            }
            _ => {}
        }
        p.f32("rope.freq_base", self.theta);
        Ok(())
    }

    /// What each frequency is divided by, of the kind `llama3` (Llama 3.1): long waves are stretched by the factor,
    /// short ones are not, and between the two it goes over smoothly. `[dim / 2]`.
    pub(super) fn llama3(&self, p: &Plan<'_>, dim: usize) -> Result<Vec<f32>> {
        let factor = self.number(p, "factor")?.unwrap_or(8.0) as f32;
        let low = self.number(p, "low_freq_factor")?.unwrap_or(1.0) as f32;
        let high = self.number(p, "high_freq_factor")?.unwrap_or(4.0) as f32;
        let context = self.number(p, "original_max_position_embeddings")?.unwrap_or(8192.0) as f32;
        let one = |i: usize| {
            let freq = 1.0 / (self.theta as f32).powf(i as f32 / dim as f32);
            let wave = std::f32::consts::TAU / freq;
            if wave < context / high {
                1.0
            } else if wave > context / low {
                factor
            } else {
                let smooth = (context / wave - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Ok((0..dim).step_by(2).map(one).collect())
    }
}
