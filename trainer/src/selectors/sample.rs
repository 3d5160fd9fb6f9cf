//! A bounded sample of each task's training rows, kept in the bundle to calibrate with: what weights, temperature and
//! limits are fitted to at every stage, so that they never follow the newest task alone.
//!
//! The rows are among those counted, and are always scored as if they were not (leave-one-out), so no row is lost
//! to a validation split. No text is kept: features, and hashes or token numbers of n-grams.
//!
//! Payload, beside the statistics: [`ROWS`] F16 `[n, dim]`, [`CLASSES`] I32 `[n]`; and for each table of n-grams its
//! `sample.keys` I32 `[grams, 2]` and `sample.first` I32 `[n + 1]`.

use crate::rng::Stream;
use conpet_formats::ngrams::{Gram, Table};
use conpet_formats::tensors::{Tensors, TensorsWriter};
use conpet_formats::{Code, Error, Result};

/// Tensor name of the features.
pub const ROWS: &str = "sample.rows";
/// Tensor name of the classes.
pub const CLASSES: &str = "sample.classes";

/// Rows with their classes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    /// Features `[n, dim]`.
    pub rows: Vec<f32>,
    /// Classes `[n]`, ascending in their tasks.
    pub classes: Vec<usize>,
    /// For each table, the grams of each row.
    pub grams: Vec<(Table, Vec<Vec<Gram>>)>,
}

impl Sample {
    /// Adds at most `most` rows of `x [n, dim]`, drawn at random by the seed; `grams` has those of each row for the
    /// same tables as before.
    ///
    /// # Panics
    /// If lengths or tables do not fit.
    pub fn add(&mut self, x: &[f32], classes: &[usize], grams: &[(Table, Vec<Vec<Gram>>)], most: usize, seed: u64) {
        let dim = x.len() / classes.len().max(1);
        let mut chosen: Vec<usize> = (0..classes.len()).collect();
        Stream::new(seed, "sample", self.classes.len() as u64).shuffle(&mut chosen);
        chosen.truncate(most);
        chosen.sort_unstable();
        if self.grams.is_empty() {
            self.grams = grams.iter().map(|(t, _)| (*t, Vec::new())).collect();
        }
        assert!(self.grams.iter().map(|g| g.0).eq(grams.iter().map(|g| g.0)), "the tables of a sample never change");
        for i in chosen {
            // As it will be read back.
            self.rows.extend(x[i * dim..(i + 1) * dim].iter().map(|v| half::f16::from_f32(*v).to_f32()));
            self.classes.push(classes[i]);
            self.grams.iter_mut().zip(grams).for_each(|(mine, new)| mine.1.push(new.1[i].clone()));
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
        w.add_i32(CLASSES, &[n], &classes)?;
        for (table, rows) in &self.grams {
            let keys: Vec<i32> = rows.iter().flatten().flat_map(|(a, b)| [*a, *b]).collect();
            let first = std::iter::once(0).chain(rows.iter().scan(0, |at, r| {
                *at += r.len() as i32;
                Some(*at)
            }));
            w.add_i32(&table.tensor("sample.keys"), &[keys.len() / 2, 2], &keys)?;
            w.add_i32(&table.tensor("sample.first"), &[n + 1], &first.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Reads a sample of features of length `dim` and of these tables, of rows of the first `known` classes; `None` if
    /// the payload has none, as in bundles of earlier versions.
    ///
    /// # Errors
    /// If tensors are missing or do not fit, or tables are others.
    pub fn read(payload: &[u8], dim: usize, known: usize, tables: &[Table]) -> Result<Option<Self>> {
        let t = Tensors::parse(payload)?;
        let Some(rows) = t.get(ROWS) else { return Ok(None) };
        let need = |name: &str| t.get(name).ok_or_else(|| Error::new(Code::Missing, format!("no tensor {name:?}")));
        let (rows, classes) = (rows.to_f32(), need(CLASSES)?.to_i32());
        let n = classes.len();
        let misfit = || {
            let what = format!("a sample of {n} rows does not fit features of {dim}, {known} classes and {tables:?}");
            Error::new(Code::Shape, what)
        };
        if rows.len() != n * dim || classes.iter().any(|c| usize::try_from(*c).map_or(true, |c| c >= known)) {
            return Err(misfit());
        }
        let mut grams = Vec::new();
        for table in Table::ALL {
            let keys = t.get(&table.tensor("sample.keys"));
            if keys.is_some() != tables.contains(&table) {
                return Err(misfit());
            }
            let Some(keys) = keys else { continue };
            let (keys, first) = (keys.to_i32(), need(&table.tensor("sample.first"))?.to_i32());
            if first.len() != n + 1 {
                return Err(misfit());
            }
            let row = |w: &[i32]| {
                let range = usize::try_from(w[0]).ok()?..usize::try_from(w[1]).ok()?;
                Some(keys.get(2 * range.start..2 * range.end)?.chunks_exact(2).map(|k| (k[0], k[1])).collect())
            };
            grams.push((table, first.windows(2).map(|w| row(w).ok_or_else(misfit)).collect::<Result<Vec<_>>>()?));
        }
        Ok(Some(Self { rows, classes: classes.into_iter().map(|c| c as usize).collect(), grams }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpet_formats::ngrams::Words;

    #[test]
    fn a_task_keeps_its_share_and_payloads_round_trip() {
        let x: Vec<f32> = (0..200).map(|i| i as f32 * 0.37).collect();
        let classes: Vec<usize> = (0..100).map(|i| i % 3).collect();
        let grams = |tasks: &str| {
            let of = |t: Table| (0..100).map(|i| t.grams(Words { tokens: &[i], text: tasks })).collect();
            Table::ALL.map(|t| (t, of(t))).to_vec()
        };
        let mut s = Sample::default();
        s.add(&x, &classes, &grams("first"), 8, 1);
        assert_eq!((s.classes.len(), s.rows.len()), (8, 16));
        let before = s.clone();
        s.add(&x[..6], &[3; 3], &grams("second"), 8, 1);
        assert_eq!((s.classes.len(), &s.rows[..16]), (11, before.rows.as_slice()), "fewer rows are all kept");
        // A row keeps its own grams: the token alone is its number.
        for (row, grams) in s.rows.chunks_exact(2).zip(&s.grams[0].1) {
            let number = (row[0] / 0.74).round() as i32;
            assert!(grams.contains(&(-1, number)), "{row:?} {grams:?}");
        }
        let mut w = TensorsWriter::new();
        s.write(&mut w).unwrap();
        let payload = w.finish().unwrap();
        let read = |dim, known, tables: &[Table]| Sample::read(&payload, dim, known, tables);
        assert_eq!(read(2, 4, &Table::ALL).unwrap(), Some(s));
        for (dim, known, tables) in
            [(3, 4, Table::ALL.as_slice()), (2, 3, &Table::ALL), (2, 4, &[Table::Tokens]), (2, 4, &[])]
        {
            let e = read(dim, known, tables).unwrap_err();
            assert_eq!(e.code(), Code::Shape, "{dim} {known} {tables:?}");
        }
        assert_eq!(Sample::read(&TensorsWriter::new().finish().unwrap(), 2, 4, &Table::ALL).unwrap(), None);
    }
}
