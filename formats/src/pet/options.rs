//! The options of a part of a spec, `r=4,alpha=8`, taken one by one.

use crate::{Code, Error, Result};
use std::str::FromStr;

/// Options that nobody has taken yet.
#[derive(Debug)]
pub struct Options<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Options<'a> {
    /// Reads `NAME=VALUE,NAME=VALUE..`.
    ///
    /// # Errors
    /// Names what is no such pair.
    pub fn parse(text: &'a str) -> Result<Self> {
        let pair = |o: &'a str| {
            o.split_once('=').ok_or_else(|| Error::new(Code::Value, format!("option {:?} is not NAME=VALUE", clip(o))))
        };
        text.split(',').map(str::trim).filter(|o| !o.is_empty()).map(pair).collect::<Result<_>>().map(Self)
    }

    /// The value of an option, if it is given.
    pub fn take(&mut self, name: &str) -> Option<&'a str> {
        let i = self.0.iter().position(|(n, _)| *n == name)?;
        Some(self.0.remove(i).1)
    }

    /// Replaces a number by the option's value, if it is given.
    ///
    /// # Errors
    /// If that is no such number.
    pub fn number<T: FromStr>(&mut self, name: &str, number: &mut T) -> Result<()> {
        let Some(text) = self.take(name) else { return Ok(()) };
        *number =
            text.parse().map_err(|_| Error::new(Code::Value, format!("{name}={:?} is not a number", clip(text))))?;
        Ok(())
    }

    /// Replaces a choice by the one of `all` that the option spells, if it is given.
    ///
    /// # Errors
    /// If it spells none; the message lists them.
    pub fn choice<T: Copy>(
        &mut self,
        name: &str,
        all: &[T],
        spelled: fn(T) -> &'static str,
        choice: &mut T,
    ) -> Result<()> {
        let Some(text) = self.take(name) else { return Ok(()) };
        *choice = all.iter().copied().find(|v| spelled(*v) == text).ok_or_else(|| {
            let known: Vec<_> = all.iter().map(|v| spelled(*v)).collect();
            Error::new(Code::Value, format!("{name}={:?} is none of {}", clip(text), known.join(", ")))
        })?;
        Ok(())
    }

    /// The name of an option that is left.
    pub(super) fn left(&self) -> Option<String> {
        self.0.first().map(|(name, _)| clip(name))
    }
}

/// A text short enough for a message.
pub(super) fn clip(s: &str) -> String {
    s.chars().take(40).collect()
}
