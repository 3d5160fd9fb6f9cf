//! A spec as text, in flags and manifests: `lora:r=4,alpha=8+adapter:n=16,act=relu+bias:at=attn_q/attn_v`.
//!
//! Parts with `+` between them; a part is a kind and its options. What is not given is the kind's
//! default. The canonical spelling, which a manifest must use, gives every hyper-parameter and `at`
//! and `last` only where they are not the default.

use super::options::{Options, clip};
use super::{Lora, Part, Pet, PetKind, PetSpec, Places};
use crate::{Code, Error, Result};
use std::fmt;

/// The syntax of specs, from what each kind says of its options.
fn syntax() -> String {
    let kind = |k: &PetKind| match k.usual().syntax() {
        "" => k.name().to_owned(),
        options => format!("{}[:{options}]", k.name()),
    };
    let kinds: Vec<String> = PetKind::ALL.iter().map(kind).collect();
    format!("{}; each may have at=SITE/SITE.. and last=LAYERS; join kinds with +", kinds.join(", "))
}

impl PetSpec {
    /// Reads a spec; `lora` and `at` are what a LoRA has unless told otherwise.
    ///
    /// # Errors
    /// Names the part and what of it is wrong; the hint gives the syntax.
    pub fn parse(text: &str, lora: Lora, at: Places) -> Result<Self> {
        let usual = Part { pet: Pet::Lora(lora), at, last: None };
        let parts = text.split('+').map(|part| parse_part(part.trim(), usual)).collect::<Result<_>>();
        parts.and_then(Self::new).map_err(|e| {
            let clipped: String = text.chars().take(80).collect();
            e.in_section(format!("PET spec {clipped:?}")).hint(syntax())
        })
    }

    /// Reads the canonical spelling.
    ///
    /// # Errors
    /// As [`PetSpec::parse`]; also if the same spec is spelled another way.
    pub fn from_canonical(text: &str) -> Result<Self> {
        let spec = Self::parse(text, Lora { rank: 0, alpha: 0.0, ..Lora::default() }, Places::LINEARS)?;
        if spec.to_string() != text {
            let shown: String = text.chars().take(80).collect();
            return Err(Error::new(Code::NonCanonical, format!("PET spec {shown:?} is spelled {spec}")));
        }
        Ok(spec)
    }
}

/// Reads a part; what it does not give is as in `usual` if that is of its kind, else the kind's default.
fn parse_part(text: &str, usual: Part) -> Result<Part> {
    let (name, options) = text.split_once(':').unwrap_or((text, ""));
    let kind = PetKind::ALL.iter().find(|k| k.name() == name);
    let kind = *kind.ok_or_else(|| Error::new(Code::Value, format!("there is no PET kind {:?}", clip(name))))?;
    let usual = Some(usual).filter(|u| u.pet.kind() == kind);
    let mut pet = usual.map_or_else(|| kind.usual(), |u| u.pet);
    let mut o = Options::parse(options)?;
    pet.read(&mut o)?;
    let at = match o.take("at") {
        Some(names) => Places::parse(names, '/')?,
        None => usual.map_or_else(|| pet.default_places(), |u| u.at),
    };
    let last = o.take("last").map(|n| n.parse().map_err(|_| Error::new(Code::Value, format!("last={:?}", clip(n)))));
    let last = last.transpose()?;
    match o.left() {
        None => Ok(Part { pet, at, last }),
        Some(option) => Err(Error::new(Code::Value, format!("{name} has no option {option:?}"))),
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut options = self.pet.options();
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
