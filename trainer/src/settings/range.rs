//! The values that a setting may have, and the error for a wrong one.

use conpet_formats::{Code, Error, Result};
use std::fmt::Display;

/// A range of allowed values.
#[derive(Debug, Clone)]
pub struct Range<T> {
    /// Description that follows "takes" in the error's hint.
    allowed: String,
    /// Whether a value is allowed.
    holds: fn(&T) -> bool,
}

/// Every value of the type.
pub fn any<T>() -> Range<T> {
    Range { allowed: String::new(), holds: |_| true }
}

/// Values from 1.
pub fn at_least_one<T: PartialOrd + From<u8>>() -> Range<T> {
    Range { allowed: "at least 1".into(), holds: |v| *v >= T::from(1) }
}

/// Values above zero.
pub fn positive() -> Range<f64> {
    Range { allowed: "a positive number".into(), holds: |v| *v > 0.0 && *v < 1e6 }
}

/// Values from zero.
pub fn not_negative() -> Range<f64> {
    Range { allowed: "0 or a positive number".into(), holds: |v| (0.0..1e6).contains(v) }
}

/// Values from 0 to 1.
pub fn part() -> Range<f64> {
    Range { allowed: "a number from 0 to 1".into(), holds: |v| (0.0..=1.0).contains(v) }
}

/// Values for which `holds`; `allowed` describes them.
pub fn such<T>(allowed: impl Into<String>, holds: fn(&T) -> bool) -> Range<T> {
    Range { allowed: allowed.into(), holds }
}

impl<T> Range<T> {
    /// Fails for a value that is not allowed.
    ///
    /// # Errors
    /// Names the flag, the value and what is allowed.
    pub fn check(&self, key: &str, value: &T) -> Result<()>
    where
        T: Setting,
    {
        if (self.holds)(value) { Ok(()) } else { Err(refusal(key, &value.text(), &self.allowed)) }
    }
}

/// A value that can be written as a flag's argument.
pub trait Setting {
    /// The value as written after a flag.
    fn text(&self) -> String;
}

impl<T: serde::Serialize> Setting for T {
    fn text(&self) -> String {
        match toml::Value::try_from(self) {
            Ok(toml::Value::String(text)) => text,
            Ok(toml::Value::Float(v)) => v.to_string(),
            Ok(other) => other.to_string(),
            Err(_) => String::new(),
        }
    }
}

/// The error for a setting's value that is not allowed.
pub fn refusal(key: &str, value: &dyn Display, allowed: &str) -> Error {
    let flag = flag(key);
    Error::new(Code::Value, format!("{flag} {value} is not allowed")).hint(format!("{flag} takes {allowed}"))
}

/// The flag of a setting: `lr_max` is `--lr-max`.
pub fn flag(key: &str) -> String {
    format!("--{}", key.replace('_', "-"))
}
