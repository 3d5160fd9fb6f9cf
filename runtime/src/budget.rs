//! Decides which weights stay in memory under a memory limit.
//!
//! Every pass reads the layers in order and then the output head, so the part used longest ago is needed next,
//! and evicting it (LRU) would read everything again in each pass. Instead the first parts stay for good, and
//! each of the others leaves as soon as it has been used.

use crate::error::{Code, Error, Result};
use conpet_formats::mmap::Mapped;
use std::ops::Range;

const MIB: usize = 1 << 20;

/// The parts of a base in the order of their use, each as ranges of mapped files, and how many of the first of
/// them stay.
#[derive(Debug)]
pub(crate) struct Budget {
    parts: Vec<Vec<(Mapped, Range<usize>)>>,
    stay: usize,
}

impl Budget {
    /// Keeps as many of the first parts as leave room for the largest of the others.
    ///
    /// # Errors
    /// If the largest part alone is more than `bytes`.
    pub(crate) fn new(parts: Vec<Vec<(Mapped, Range<usize>)>>, bytes: usize) -> Result<Self> {
        let sizes: Vec<usize> = parts.iter().map(|p| p.iter().map(|(_, r)| r.len()).sum()).collect();
        let needs =
            |stay: usize| sizes[..stay].iter().sum::<usize>() + sizes[stay..].iter().copied().max().unwrap_or_default();
        match (0..=parts.len()).rev().find(|stay| needs(*stay) <= bytes) {
            Some(stay) => Ok(Self { parts, stay }),
            None => Err(Error::new(
                Code::Cap,
                format!("{} MiB are less than the base's largest part, {} MiB", bytes / MIB, needs(0).div_ceil(MIB)),
            )
            .hint("give that much or more, or use a base with a smaller quantization")),
        }
    }

    /// Notes that a part was used: unless it is one that stays, it leaves memory and the next such part is
    /// prefetched.
    pub(crate) fn used(&self, part: usize) {
        if part < self.stay {
            return;
        }
        self.parts[part].iter().for_each(|(map, r)| map.forget(r.clone()));
        let next = if part + 1 < self.parts.len() { part + 1 } else { self.stay };
        self.parts[next].iter().for_each(|(map, r)| map.will_need(r.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_parts_stay_and_the_largest_of_the_others_fits_beside_them() {
        let map = Mapped::from_vec(vec![0; 30]);
        let parts = || [10, 10, 10, 30].map(|n| [0..n / 2, n / 2..n].map(|r| (map.clone(), r)).to_vec()).to_vec();
        let stay = |bytes: usize| Budget::new(parts(), bytes).map(|b| b.stay);
        assert_eq!(stay(60).unwrap(), 4);
        assert_eq!(stay(59).unwrap(), 2, "the third would leave no room for the head");
        assert_eq!(stay(30).unwrap(), 0);
        assert_eq!(stay(29).unwrap_err().code(), Code::Cap);
    }
}
