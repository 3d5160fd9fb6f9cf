//! A bounded memory: features of a few rows of each class, kept in the bundle for selectors that are retrained
//! at each task.
//!
//! No text is kept, and the number of rows of a class never grows. Rows are drawn uniformly when their task is
//! learned (all rows of a class come with its task, so the result is that of reservoir sampling, Vitter 1985).
//!
//! Payload: [`ROWS`] F16 `[n, dim]`, [`CLASSES`] I32 `[n]`.

use crate::rng::Stream;
use conpet_formats::tensors::{Tensors, TensorsWriter};
use conpet_formats::{Code, Error, Result};

/// Tensor name of the features.
pub const ROWS: &str = "memory.rows";
/// Tensor name of the classes.
pub const CLASSES: &str = "memory.classes";

/// Features with their classes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    /// Features `[n, dim]`.
    pub rows: Vec<f32>,
    /// Classes `[n]`.
    pub classes: Vec<usize>,
}

impl Memory {
    /// Adds at most `most` rows of each class of `x [n, dim]`, drawn at random by the seed.
    pub fn add(&mut self, x: &[f32], classes: &[usize], most: usize, seed: u64) {
        let dim = x.len() / classes.len().max(1);
        let mut known: Vec<usize> = classes.to_vec();
        known.sort_unstable();
        known.dedup();
        for c in known {
            let mut mine: Vec<usize> = (0..classes.len()).filter(|i| classes[*i] == c).collect();
            Stream::new(seed, "memory", c as u64).shuffle(&mut mine);
            mine.truncate(most);
            mine.sort_unstable();
            for i in mine {
                self.rows.extend(&x[i * dim..(i + 1) * dim]);
                self.classes.push(c);
            }
        }
    }

    /// Adds the tensors to a payload.
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn write(&self, w: &mut TensorsWriter<'_>) -> Result<()> {
        let n = self.classes.len();
        let classes: Vec<i32> = self.classes.iter().map(|c| *c as i32).collect();
        w.add_f16(ROWS, &[n, self.rows.len() / n.max(1)], &self.rows)?;
        w.add_i32(CLASSES, &[n], &classes)
    }

    /// Reads a memory of features of length `dim`.
    ///
    /// # Errors
    /// If tensors are missing or do not fit.
    pub fn from_payload(bytes: &[u8], dim: usize) -> Result<Self> {
        let t = Tensors::parse(bytes)?;
        let need = |name: &str| t.get(name).ok_or_else(|| Error::new(Code::Missing, format!("no tensor {name:?}")));
        let (rows, classes) = (need(ROWS)?.to_f32(), need(CLASSES)?.to_i32());
        if rows.len() != classes.len() * dim || classes.iter().any(|c| *c < 0) {
            return Err(Error::new(
                Code::Shape,
                format!("a memory of {} rows does not fit features of {dim}", classes.len()),
            ));
        }
        Ok(Self { rows, classes: classes.into_iter().map(|c| c as usize).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_keeps_its_share_and_no_more_whatever_comes_later() {
        let x: Vec<f32> = (0..200).map(|i| i as f32).collect();
        let classes: Vec<usize> = (0..100).map(|i| usize::from(i >= 97)).collect();
        let mut m = Memory::default();
        m.add(&x, &classes, 5, 1);
        assert_eq!((m.classes.as_slice(), m.rows.len()), ([0, 0, 0, 0, 0, 1, 1, 1].as_slice(), 16));
        let before = m.clone();
        m.add(&x, &[2; 100], 5, 1);
        assert_eq!(m.classes.len(), 13);
        assert_eq!(m.rows[..16], before.rows);
        let mut w = TensorsWriter::new();
        m.write(&mut w).unwrap();
        let payload = w.finish().unwrap();
        assert_eq!(Memory::from_payload(&payload, 2).unwrap(), m);
        assert_eq!(Memory::from_payload(&payload, 3).unwrap_err().code(), Code::Shape);
        let mut other = Memory::default();
        other.add(&x, &classes, 5, 2);
        assert_ne!(other, before, "another seed draws other rows");
    }
}
