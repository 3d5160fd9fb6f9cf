//! Counts of n-grams by class, see [`conpet_formats::ngrams`].

use conpet_formats::ngrams::{Gram, Table};
use conpet_formats::tensors::{Tensors, TensorsWriter};
use conpet_formats::{Code, Error, Result};
use std::collections::BTreeMap;

/// Added to every count. It is small, because an n-gram that a class never had says much about short texts
/// (0.003 to 0.03 do equally well on clinc150's validation rows, 0.1 does worse).
const SMOOTHING: f32 = 0.01;

/// How often each n-gram of a table occurs in each class.
#[derive(Debug, Clone, PartialEq)]
pub struct Counts {
    table: Table,
    grams: BTreeMap<Gram, BTreeMap<i32, i32>>,
    totals: Vec<i32>,
}

impl Counts {
    /// Counts of nothing yet.
    pub fn new(table: Table) -> Self {
        Self { table, grams: BTreeMap::new(), totals: Vec::new() }
    }

    /// Makes room for `n` more classes.
    pub fn grow(&mut self, n: usize) {
        self.totals.resize(self.totals.len() + n, 0);
    }

    /// Counts one text's grams.
    ///
    /// # Panics
    /// If the class is unknown.
    pub fn add(&mut self, grams: &[Gram], class: usize) {
        for gram in grams {
            *self.grams.entry(*gram).or_default().entry(class as i32).or_default() += 1;
            self.totals[class] += 1;
        }
    }

    /// The score of each class, at weight 1, for a counted text as if it had not been counted.
    pub fn left_out(&self, grams: &[Gram], class: usize) -> Vec<f32> {
        let mut own: BTreeMap<Gram, i32> = BTreeMap::new();
        grams.iter().for_each(|g| *own.entry(*g).or_default() += 1);
        let (mut gone, mut known) = (0, 0.0f32);
        let mut log_p = vec![0.0f32; self.totals.len()];
        for (gram, times) in own {
            let Some(entries) = self.grams.get(&gram) else { continue };
            if entries.len() == 1 && entries.get(&(class as i32)) == Some(&times) {
                gone += 1;
                continue;
            }
            known += times as f32;
            for (c, count) in entries {
                // A damaged sample may have grams that were never counted.
                let count = (count - if *c == class as i32 { times } else { 0 }).max(0);
                log_p[*c as usize] += times as f32 * (count as f32 / SMOOTHING).ln_1p();
            }
        }
        let kinds = SMOOTHING * (self.grams.len() - gone) as f32;
        let scale = self.table.scale(grams.len());
        let score = |(c, (log_p, total)): (usize, (f32, &i32))| {
            let total = total - if c == class { grams.len() as i32 } else { 0 };
            scale * (log_p + known * (SMOOTHING / (total as f32 + kinds).max(SMOOTHING)).ln())
        };
        log_p.into_iter().zip(&self.totals).enumerate().map(score).collect()
    }

    /// Reads what [`Counts::write`] wrote; `None` if the payload has no such table.
    ///
    /// # Errors
    /// If the tensors do not fit each other.
    pub fn read(table: Table, payload: &[u8]) -> Result<Option<Self>> {
        let tensors = Tensors::parse(payload)?;
        let Some(keys) = tensors.get(&table.tensor("keys")) else { return Ok(None) };
        let need = |name: &str| {
            let name = table.tensor(name);
            tensors
                .get(&name)
                .map(|t| t.to_i32())
                .ok_or_else(|| Error::new(Code::Missing, format!("no tensor {name:?}")))
        };
        let (keys, first, classes, counts) = (keys.to_i32(), need("first")?, need("classes")?, need("counts")?);
        let misfit = || Error::new(Code::Shape, "the n-grams' tensors do not fit each other");
        let mut out = Self { table, grams: BTreeMap::new(), totals: need("totals")? };
        for (key, range) in keys.chunks_exact(2).zip(first.windows(2)) {
            let range = range[0] as usize..range[1] as usize;
            let (c, n) = classes.get(range.clone()).zip(counts.get(range)).ok_or_else(misfit)?;
            out.grams.insert((key[0], key[1]), c.iter().copied().zip(n.iter().copied()).collect());
        }
        Ok(Some(out))
    }

    /// Adds the tensors to a selector's payload.
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn write(&self, weight: f64, w: &mut TensorsWriter<'_>) -> Result<()> {
        let keys: Vec<i32> = self.grams.keys().flat_map(|(a, b)| [*a, *b]).collect();
        let mut first = vec![0];
        let (mut classes, mut counts) = (Vec::new(), Vec::new());
        for entries in self.grams.values() {
            classes.extend(entries.keys());
            counts.extend(entries.values());
            first.push(classes.len() as i32);
        }
        let name = |n: &str| self.table.tensor(n);
        w.add_i32(&name("keys"), &[self.grams.len(), 2], &keys)?;
        w.add_i32(&name("first"), &[first.len()], &first)?;
        w.add_i32(&name("classes"), &[classes.len()], &classes)?;
        w.add_i32(&name("counts"), &[counts.len()], &counts)?;
        w.add_i32(&name("totals"), &[self.totals.len()], &self.totals)?;
        w.add_f32(&name("scale"), &[2], &[weight as f32, SMOOTHING])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpet_formats::mmap::Mapped;
    use conpet_formats::ngrams::{Ngrams, Words};

    #[test]
    fn counting_in_parts_gives_the_same_classifier() {
        let rows: [(&[u32], usize); 4] = [(&[1, 2, 3], 0), (&[4, 5], 1), (&[1, 5], 2), (&[6, 6, 2], 2)];
        let words = |tokens| Words { tokens, text: "" };
        let new = || Counts::new(Table::Tokens);
        let payload = |c: &Counts| {
            let mut w = TensorsWriter::new();
            c.write(2.0, &mut w).unwrap();
            w.finish().unwrap()
        };
        let mut whole = new();
        whole.grow(3);
        rows.iter().for_each(|(t, c)| whole.add(&Table::Tokens.grams(words(t)), *c));
        let mut parts = new();
        parts.grow(2);
        rows[..2].iter().for_each(|(t, c)| parts.add(&Table::Tokens.grams(words(t)), *c));
        let mut parts = Counts::read(Table::Tokens, &payload(&parts)).unwrap().unwrap();
        parts.grow(1);
        rows[2..].iter().for_each(|(t, c)| parts.add(&Table::Tokens.grams(words(t)), *c));
        assert_eq!(parts, whole);
        let map = Mapped::from_vec(payload(&whole));
        let range = 0..map.len();
        let n = Ngrams::load(Table::Tokens, &map, range, 3).unwrap().unwrap();
        for (tokens, class) in rows {
            let mut scores = [0.0; 3];
            n.add_scores(words(tokens), &mut scores);
            assert!((0..3).all(|c| c == class || scores[c] < scores[class]), "{tokens:?}: {scores:?}");
        }
        assert_eq!(Counts::read(Table::Tokens, &TensorsWriter::new().finish().unwrap()).unwrap(), None);
    }

    #[test]
    fn a_text_left_out_is_a_text_never_counted() {
        let texts = ["dim the lamp", "dim the light", "play the song", "play a song", "open the door", "a lamp"];
        for table in Table::ALL {
            let grams = |i: usize| {
                let tokens: Vec<u32> = texts[i].bytes().map(u32::from).collect();
                table.grams(Words { tokens: &tokens, text: texts[i] })
            };
            let counts = |skip: Option<usize>| {
                let mut out = Counts::new(table);
                out.grow(3);
                (0..6).filter(|i| Some(*i) != skip).for_each(|i| out.add(&grams(i), i / 2));
                out
            };
            for i in 0..6 {
                let mut w = TensorsWriter::new();
                counts(Some(i)).write(1.0, &mut w).unwrap();
                let map = Mapped::from_vec(w.finish().unwrap());
                let range = 0..map.len();
                let mut want = [0.0; 3];
                let tokens: Vec<u32> = texts[i].bytes().map(u32::from).collect();
                let served = Ngrams::load(table, &map, range, 3).unwrap().unwrap();
                served.add_scores(Words { tokens: &tokens, text: texts[i] }, &mut want);
                let got = counts(None).left_out(&grams(i), i / 2);
                for (g, w) in got.iter().zip(want) {
                    assert!((g - w).abs() < 1e-3 * (1.0 + w.abs()), "{table:?} {i}: {got:?} for {want:?}");
                }
            }
        }
    }
}
