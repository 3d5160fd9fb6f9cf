//! Budgets: how many parameters a module may have, as `--params` takes it.

use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};
use std::str::FromStr;

/// How many parameters may be trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// So many.
    Parameters(usize),
    /// This part of the base's.
    Part(f64),
}

impl FromStr for Budget {
    type Err = Error;

    /// `5000`, `0.1%` or `1e-4`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::new(Code::Value, format!("{:?} is no budget", text.chars().take(40).collect::<String>()))
                .hint("give a number of parameters (5000), or a part of the base's (0.1% or 1e-4, at most 100%)")
        };
        if let Ok(n) = text.parse::<usize>() {
            return if n > 0 { Ok(Self::Parameters(n)) } else { Err(bad()) };
        }
        let part = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|v| v / 100.0),
            None => text.parse::<f64>(),
        };
        part.ok().filter(|v| *v > 0.0 && *v <= 1.0).map(Self::Part).ok_or_else(bad)
    }
}

impl Budget {
    /// In parameters, of this base.
    pub fn parameters(self, spec: &ModelSpec) -> usize {
        match self {
            Self::Parameters(n) => n,
            Self::Part(p) => (p * spec.parameters() as f64).round() as usize,
        }
    }
}
