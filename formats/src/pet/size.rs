//! Sizing: the module of a kind that spends a budget of trainable numbers, whatever the kind.
//!
//! A kind's own dial (rank, width, pairs, rows, positions) is turned as far as the budget reaches.
//! Where even its lowest setting is too dear, the kind acts in fewer layers, from the top; where one
//! layer is too dear, at fewer places of it, the cheapest first. Kinds without a dial ((IA)³, bias)
//! have only the last two, and a largest size.

use super::{Part, Pet, PetSpec, Places};
use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};
use std::str::FromStr;

/// How many numbers may be trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// So many.
    Numbers(usize),
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
            return if n > 0 { Ok(Self::Numbers(n)) } else { Err(bad()) };
        }
        let part = match text.strip_suffix('%') {
            Some(percent) => percent.trim().parse::<f64>().map(|v| v / 100.0),
            None => text.parse::<f64>(),
        };
        part.ok().filter(|v| *v > 0.0 && *v <= 1.0).map(Self::Part).ok_or_else(bad)
    }
}

impl Budget {
    /// In numbers, of this base.
    pub fn numbers(self, spec: &ModelSpec) -> usize {
        match self {
            Self::Numbers(n) => n,
            Self::Part(p) => (p * spec.parameters() as f64).round() as usize,
        }
    }
}

impl PetSpec {
    /// The same kinds at the same places, as large as `budget` allows in layers `first..`; several
    /// kinds share it equally.
    ///
    /// # Errors
    /// If the smallest form of a kind is more than its share.
    pub fn sized(&self, spec: &ModelSpec, first: usize, budget: Budget) -> Result<Self> {
        let share = budget.numbers(spec) / self.parts.len();
        Self::new(self.parts.iter().map(|p| sized(*p, spec, first, share)).collect::<Result<_>>()?)
    }
}

/// The kind with its dial at `n`; `None` if it has none, or not as far.
fn turned(pet: Pet, n: usize) -> Option<Pet> {
    let pet = match pet {
        Pet::Lora(x) => Pet::Lora(x.of_rank(n)),
        Pet::Sparse(mut x) => {
            x.n = n;
            Pet::Sparse(x)
        }
        Pet::Adapter(mut x) => {
            x.width = n;
            Pet::Adapter(x)
        }
        Pet::Prefix(mut x) => {
            x.pairs = n;
            Pet::Prefix(x)
        }
        Pet::Prompt(mut x) => {
            x.rows = n;
            Pet::Prompt(x)
        }
        Pet::Ia3 | Pet::Bias => return None,
    };
    pet.check().is_ok().then_some(pet)
}

fn sized(part: Part, spec: &ModelSpec, first: usize, budget: usize) -> Result<Part> {
    let cost = |p: &Part| p.parameters(spec, first);
    let least = Part { pet: turned(part.pet, 1).unwrap_or(part.pet), ..part };
    if cost(&least) <= budget {
        // The cost grows with the dial, so the last setting that fits is found by halving.
        let (mut fits, mut beyond) = (least, budget + 1);
        let mut low = 1;
        while beyond - low > 1 {
            let n = low + (beyond - low) / 2;
            match turned(part.pet, n).map(|pet| Part { pet, ..part }).filter(|p| cost(p) <= budget) {
                Some(p) => (fits, low) = (p, n),
                None => beyond = n,
            }
        }
        return Ok(fits);
    }
    let layers = part.last.unwrap_or(spec.n_layer - first);
    let fewer = (1..layers).rev().map(|n| Part { last: Some(n), ..least });
    if let Some(p) = fewer.filter(|p| p.check().is_ok()).find(|p| cost(p) <= budget) {
        return Ok(p);
    }
    let one = Part { last: (layers > 1).then_some(1).or(part.last), ..least };
    let mut places: Vec<_> = part.at.iter().collect();
    places.sort_by_key(|p| cost(&Part { at: Places::of(&[*p]), ..one }));
    let fewer = (1..places.len()).rev().map(|n| Part { at: Places::of(&places[..n]), ..one });
    fewer.filter(|p| p.check().is_ok()).find(|p| cost(p) <= budget).ok_or_else(|| {
        let smallest = places.iter().map(|p| Part { at: Places::of(&[*p]), ..one }).filter(|p| p.check().is_ok());
        let smallest = smallest
            .map(|p| cost(&p))
            .min()
            .unwrap_or_else(|| if one.check().is_ok() { cost(&one) } else { cost(&least) });
        Error::new(
            Code::Value,
            format!("{budget} numbers are too few for {}, whose smallest form has {smallest}", part.pet.kind().name()),
        )
        .hint("raise --params, or choose another kind: sparse takes any number")
    })
}
