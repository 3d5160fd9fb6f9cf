//! Exact decimals: manifests hold no floats, so that equal numbers are equal bytes.

use crate::error::clip;
use crate::{Code, Error, Result};
use serde::{Deserialize, Serialize};

/// A number as canonical text: `-?(0|[1-9][0-9]{0,8})(\.[0-9]{1,9})?`, no trailing zeros,
/// no negative zero.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Decimal(String);

impl Decimal {
    /// Rounds to nine decimals.
    ///
    /// # Panics
    /// If `value` is not finite or its magnitude is 10^9 or more: callers hold trained or
    /// configured values, which are checked where they arise.
    pub fn from_f64(value: f64) -> Self {
        assert!(value.is_finite() && value.abs() < 1e9, "decimal out of range: {value}");
        let mut s = format!("{value:.9}");
        let keep = s.trim_end_matches('0').trim_end_matches('.').len();
        s.truncate(keep);
        if s == "-0" {
            s = "0".into();
        }
        Self(s)
    }

    /// Checks the grammar above.
    pub fn parse(text: &str) -> Result<Self> {
        let bad = || Error::new(Code::Value, format!("not a canonical decimal: {:?}", clip(text)));
        let body = text.strip_prefix('-').unwrap_or(text);
        let (int, frac) = match body.split_once('.') {
            Some((i, f)) => (i, Some(f)),
            None => (body, None),
        };
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        let int_ok = digits(int) && int.len() <= 9 && (int == "0" || !int.starts_with('0'));
        let frac_ok = frac.is_none_or(|f| digits(f) && f.len() <= 9 && !f.ends_with('0'));
        if !int_ok || !frac_ok || text == "-0" {
            return Err(bad());
        }
        Ok(Self(text.to_owned()))
    }

    /// Nearest `f64`.
    pub fn to_f64(&self) -> f64 {
        self.0.parse().unwrap_or(f64::NAN)
    }

    /// The canonical text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let s = String::deserialize(d)?;
        Self::parse(&s).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_other_spellings() {
        for v in [0.0, -0.0, 1.0, -2.5, 0.000_000_001, 123_456_789.25, 1e-12] {
            let d = Decimal::from_f64(v);
            assert_eq!(Decimal::parse(d.as_str()).unwrap(), d);
            assert!((d.to_f64() - v).abs() <= 5e-10, "{v} -> {}", d.as_str());
        }
        for bad in ["", "-", "-0", "1.", ".5", "1.50", "01", "1e3", "+1", "1234567890", "0.1234567891", "NaN", " 1"] {
            assert!(Decimal::parse(bad).is_err(), "{bad:?} was accepted");
        }
    }
}
