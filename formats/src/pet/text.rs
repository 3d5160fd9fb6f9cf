//! A spec as text, in flags and manifests: `lora:r=4,alpha=8+adapter:n=16,act=relu+bias:at=attn_q/attn_v`.
//!
//! Parts with `+` between them; a part is a kind and its options. What is not given is the kind's
//! default. The canonical spelling, which a manifest must use, gives every hyper-parameter and `at`
//! and `last` only where they are not the default.

use super::adapter::{Act, Form};
use super::lora::Scaling;
use super::sparse::Rule;
use super::{Adapter, Lora, Part, Pet, PetKind, PetSpec, Places, Prefix, Prompt, Sparse};
use crate::{Code, Error, Result};
use std::fmt;
use std::str::FromStr;

/// What each kind's options are.
const SYNTAX: &str = "lora[:r=,alpha=,scaling=alpha/r|alpha/sqrt(r)], bias, ia3, adapter[:n=,form=houlsby|pfeiffer|parallel,act=gelu|relu], \
     prefix[:n=,mid=], prompt[:n=], sparse[:n=,rule=random|magnitude|fisher]; each may have at=SITE/SITE.. and last=LAYERS; join kinds with +";

impl PetSpec {
    /// Reads a spec; `lora` and `at` are what a LoRA has unless told otherwise.
    ///
    /// # Errors
    /// Names the part and what of it is wrong; the hint gives the syntax.
    pub fn parse(text: &str, lora: Lora, at: Places) -> Result<Self> {
        let parts = text.split('+').map(|part| parse_part(part.trim(), lora, at)).collect::<Result<_>>();
        parts.and_then(Self::new).map_err(|e| {
            let clipped: String = text.chars().take(80).collect();
            e.in_section(format!("PET spec {clipped:?}")).hint(SYNTAX)
        })
    }

    /// Reads the canonical spelling.
    ///
    /// # Errors
    /// As [`PetSpec::parse`]; also if the same spec is spelled another way.
    pub fn from_canonical(text: &str) -> Result<Self> {
        let spec = Self::parse(text, Lora { rank: 0, alpha: 0.0, scaling: Scaling::AlphaOverRank }, Places::LINEARS)?;
        if spec.to_string() != text {
            let shown: String = text.chars().take(80).collect();
            return Err(Error::new(Code::NonCanonical, format!("PET spec {shown:?} is spelled {spec}")));
        }
        Ok(spec)
    }
}

/// The options of a part, taken one by one.
struct Options<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Options<'a> {
    fn parse(text: &'a str) -> Result<Self> {
        let pair = |o: &'a str| {
            o.split_once('=').ok_or_else(|| Error::new(Code::Value, format!("option {:?} is not NAME=VALUE", clip(o))))
        };
        text.split(',').map(str::trim).filter(|o| !o.is_empty()).map(pair).collect::<Result<_>>().map(Self)
    }

    fn take(&mut self, name: &str) -> Option<&'a str> {
        let i = self.0.iter().position(|(n, _)| *n == name)?;
        Some(self.0.remove(i).1)
    }

    fn number<T: FromStr>(&mut self, name: &str, default: T) -> Result<T> {
        let Some(text) = self.take(name) else { return Ok(default) };
        text.parse().map_err(|_| Error::new(Code::Value, format!("{name}={:?} is not a number", clip(text))))
    }

    fn choice<T: Copy>(&mut self, name: &str, all: &[T], spelled: fn(T) -> &'static str, default: T) -> Result<T> {
        let Some(text) = self.take(name) else { return Ok(default) };
        all.iter().copied().find(|v| spelled(*v) == text).ok_or_else(|| {
            let known: Vec<_> = all.iter().map(|v| spelled(*v)).collect();
            Error::new(Code::Value, format!("{name}={:?} is none of {}", clip(text), known.join(", ")))
        })
    }
}

fn clip(s: &str) -> String {
    s.chars().take(40).collect()
}

fn scaling(s: Scaling) -> &'static str {
    match s {
        Scaling::AlphaOverRank => "alpha/r",
        Scaling::RankStabilised => "alpha/sqrt(r)",
    }
}

fn parse_part(text: &str, lora: Lora, lora_at: Places) -> Result<Part> {
    let (name, options) = text.split_once(':').unwrap_or((text, ""));
    let kind = PetKind::ALL.iter().find(|k| k.name() == name);
    let kind = kind.ok_or_else(|| Error::new(Code::Value, format!("there is no PET kind {:?}", clip(name))))?;
    let mut o = Options::parse(options)?;
    let pet = match kind {
        PetKind::Lora => Pet::Lora(Lora {
            rank: o.number("r", lora.rank)?,
            alpha: o.number("alpha", lora.alpha)?,
            scaling: o.choice(
                "scaling",
                &[Scaling::AlphaOverRank, Scaling::RankStabilised],
                scaling,
                Scaling::AlphaOverRank,
            )?,
        }),
        PetKind::Sparse => Pet::Sparse(Sparse {
            n: o.number("n", 10_000)?,
            rule: o.choice("rule", &Rule::ALL, Rule::name, Rule::Random)?,
        }),
        PetKind::Ia3 => Pet::Ia3,
        PetKind::Bias => Pet::Bias,
        PetKind::Adapter => Pet::Adapter(Adapter {
            width: o.number("n", 16)?,
            form: o.choice("form", &Form::ALL, Form::name, Form::Houlsby)?,
            act: o.choice("act", &Act::ALL, Act::name, Act::Gelu)?,
        }),
        PetKind::Prefix => Pet::Prefix(Prefix { pairs: o.number("n", 16)?, mid: o.number("mid", 0)? }),
        PetKind::Prompt => Pet::Prompt(Prompt { rows: o.number("n", 16)? }),
    };
    let at = match (o.take("at"), kind) {
        (Some(names), _) => Places::parse(names, '/')?,
        (None, PetKind::Lora) => lora_at,
        (None, _) => pet.default_places(),
    };
    let last = o.take("last").map(|n| n.parse().map_err(|_| Error::new(Code::Value, format!("last={:?}", clip(n)))));
    let last = last.transpose()?;
    match o.0.first() {
        None => Ok(Part { pet, at, last }),
        Some((option, _)) => Err(Error::new(Code::Value, format!("{name} has no option {:?}", clip(option)))),
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options: Vec<String> = match self.pet {
            Pet::Lora(l) => {
                let rule = (l.scaling != Scaling::AlphaOverRank).then(|| format!("scaling={}", scaling(l.scaling)));
                [format!("r={}", l.rank), format!("alpha={}", l.alpha)].into_iter().chain(rule).collect()
            }
            Pet::Sparse(s) => vec![format!("n={}", s.n), format!("rule={}", s.rule.name())],
            Pet::Ia3 | Pet::Bias => Vec::new(),
            Pet::Adapter(a) => {
                vec![format!("n={}", a.width), format!("form={}", a.form.name()), format!("act={}", a.act.name())]
            }
            Pet::Prefix(p) => {
                let mid = (p.mid > 0).then(|| format!("mid={}", p.mid));
                std::iter::once(format!("n={}", p.pairs)).chain(mid).collect()
            }
            Pet::Prompt(p) => vec![format!("n={}", p.rows)],
        };
        if self.at != self.pet.default_places() {
            options.push(format!("at={}", self.at));
        }
        options.extend(self.last.map(|n| format!("last={n}")));
        f.write_str(self.pet.kind().name())?;
        if options.is_empty() { Ok(()) } else { write!(f, ":{}", options.join(",")) }
    }
}

impl fmt::Display for PetSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> = self.parts.iter().map(ToString::to_string).collect();
        f.write_str(&parts.join("+"))
    }
}
