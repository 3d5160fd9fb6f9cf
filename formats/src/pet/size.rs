//! Sizing: the module of a kind that spends a budget of parameters, whatever the kind.
//!
//! A kind's own size (rank, width, pairs, rows, positions) is raised as far as the budget reaches.
//! Where even the smallest is too dear, the kind acts in fewer layers, from the top; where one
//! layer is too dear, at fewer places of it, the cheapest first. Kinds without a size of
//! their own ((IA)³, bias) have only the last two, and a largest one.

use super::budget::Budget;
use super::{Part, Pet, PetSpec, Places};
use crate::model_spec::ModelSpec;
use crate::{Code, Error, Result};

impl PetSpec {
    /// The same kinds at the same places, as large as `budget` allows in layers `first..`; several
    /// kinds share it equally.
    ///
    /// # Errors
    /// If the smallest form of a kind is more than its share.
    pub fn sized(&self, spec: &ModelSpec, first: usize, budget: Budget) -> Result<Self> {
        let share = budget.parameters(spec) / self.parts.len();
        Self::new(self.parts.iter().map(|p| sized(*p, spec, first, share)).collect::<Result<_>>()?)
    }
}

/// The kind with its size at `n`; `None` if it has none, or not as far.
fn resized(mut pet: Pet, n: usize) -> Option<Pet> {
    (pet.resize(n) && pet.check().is_ok()).then_some(pet)
}

fn sized(part: Part, spec: &ModelSpec, first: usize, budget: usize) -> Result<Part> {
    let cost = |p: &Part| p.parameters(spec, first);
    let least = Part { pet: resized(part.pet, 1).unwrap_or(part.pet), ..part };
    if cost(&least) <= budget {
        // The cost grows with the size, so the largest that fits is found by halving.
        let (mut fits, mut beyond) = (least, budget + 1);
        let mut low = 1;
        while beyond - low > 1 {
            let n = low + (beyond - low) / 2;
            match resized(part.pet, n).map(|pet| Part { pet, ..part }).filter(|p| cost(p) <= budget) {
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
            format!(
                "{budget} parameters are too few for {}, whose smallest form has {smallest}",
                part.pet.kind().name()
            ),
        )
        .hint("raise --params, or choose another kind: sparse takes any number")
    })
}
