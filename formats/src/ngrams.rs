//! N-grams: evidence for a class from the words and letters of a text, beside that from the base's states.
//!
//! Multinomial naive Bayes classifiers (McCallum & Nigam 1998), made of counts alone: they grow with every task,
//! exactly and in any order, without an earlier row; and they need no pass through the base. There are two
//! [`Table`]s, over tokens and over characters. A table's payload lies beside a selector's weights, its tensors
//! named by the table's prefix:
//!
//! * `.keys` `[grams, 2]`, ascending: see [`Table::grams`];
//! * `.first` `[grams + 1]`: where each gram's entries begin;
//! * `.classes` and `.counts` `[entries]`: classes that have the gram, ascending, and how often;
//! * `.totals` `[classes]`: grams counted for each class;
//! * `.scale` F32 `[2]`: weight and smoothing.
//!
//! All but the last are I32.

use crate::mmap::Mapped;
use crate::tensors::{Dtype, Tensor, Tensors};
use crate::{Code, Error, Result};
use std::ops::Range;

/// Stands before a single token.
const ALONE: i32 = -1;
/// Stands for the border of the text.
const BORDER: i32 = -2;
/// Lengths of the n-grams of characters.
const LENGTHS: Range<usize> = 2..6;

/// A key: for tokens one token, or two neighbours; for characters a hash.
pub type Gram = (i32, i32);

/// What is read of an input beside its states.
#[derive(Debug, Clone, Copy, Default)]
pub struct Words<'a> {
    /// Its tokens.
    pub tokens: &'a [u32],
    /// Its text.
    pub text: &'a str,
}

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Each token alone, and each with the one before it, borders of the text included.
    Tokens,
    /// Two to five neighbouring characters within a word, a space at each of its ends, in lower case; each
    /// once for a text. Small words, endings and spelling mistakes have their share in what words say.
    Characters,
}

impl Table {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tokens, Self::Characters];

    /// The name of one of its tensors, for example `keys`.
    pub fn tensor(self, name: &str) -> String {
        let prefix = match self {
            Self::Tokens => "ngram",
            Self::Characters => "chars",
        };
        format!("{prefix}.{name}")
    }

    /// The evidence of a longer text is scaled down to that of this many grams: words are not independent, and a
    /// page of them must not drown the evidence of the states.
    const fn most(self) -> f32 {
        match self {
            Self::Tokens => 64.0,
            Self::Characters => 320.0,
        }
    }

    /// What the evidence of a text of `n` grams is multiplied by, before its weight.
    pub fn scale(self, n: usize) -> f32 {
        (self.most() / n as f32).min(1.0)
    }

    /// The grams of an input.
    pub fn grams(self, words: Words<'_>) -> Vec<Gram> {
        match self {
            Self::Tokens => of_tokens(words.tokens),
            Self::Characters => of_characters(words.text),
        }
    }
}

fn of_tokens(tokens: &[u32]) -> Vec<Gram> {
    let id = |t: u32| i32::try_from(t).unwrap_or(i32::MAX);
    let before = std::iter::once(BORDER).chain(tokens.iter().map(move |t| id(*t)));
    let after = tokens.iter().map(move |t| id(*t)).chain(std::iter::once(BORDER));
    tokens.iter().map(move |t| (ALONE, id(*t))).chain(before.zip(after)).collect()
}

fn of_characters(text: &str) -> Vec<Gram> {
    let mut out = Vec::new();
    for word in text.split_whitespace() {
        let padded: Vec<char> =
            std::iter::once(' ').chain(word.chars().flat_map(char::to_lowercase)).chain(std::iter::once(' ')).collect();
        for n in LENGTHS {
            if n > padded.len() {
                break;
            }
            out.extend(padded.windows(n).map(hash));
        }
    }
    out.sort_unstable();
    out.dedup();
    out
}

/// FNV-1a of some characters, 64 bits.
fn hash(characters: &[char]) -> Gram {
    let bytes = characters.iter().flat_map(|c| u32::from(*c).to_le_bytes());
    let h = bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    ((h >> 32) as i32, h as i32)
}

/// A classifier, read where it lies.
#[derive(Debug, Clone)]
pub struct Ngrams {
    table: Table,
    map: Mapped,
    keys: Range<usize>,
    first: Range<usize>,
    classes: Range<usize>,
    counts: Range<usize>,
    totals: Vec<f32>,
    weight: f32,
    smoothing: f32,
}

impl Ngrams {
    /// Finds a table's classifier in a selector's payload, which is `range` of `map`; `None` if it has none.
    ///
    /// # Errors
    /// If tensors are missing, or do not fit each other or `n_classes`.
    pub fn load(table: Table, map: &Mapped, range: Range<usize>, n_classes: usize) -> Result<Option<Self>> {
        let base = map.as_ptr() as usize;
        let tensors = Tensors::parse(&map[range])?;
        if tensors.get(&table.tensor("keys")).is_none() {
            return Ok(None);
        }
        let need = |name: &str, dtype: Dtype| -> Result<Tensor<'_>> {
            let name = table.tensor(name);
            let t = tensors.get(&name).ok_or_else(|| Error::new(Code::Missing, format!("no tensor {name:?}")))?;
            if t.dtype != dtype {
                return Err(Error::new(Code::Type, format!("tensor {name:?} is of dtype {:?}", t.dtype)));
            }
            Ok(t)
        };
        let place = |t: &Tensor<'_>| {
            let start = t.data.as_ptr() as usize - base;
            start..start + t.data.len()
        };
        let ints = |name: &str| need(name, Dtype::I32);
        let (keys, first, classes, counts) = (ints("keys")?, ints("first")?, ints("classes")?, ints("counts")?);
        let (totals, scale) = (ints("totals")?.to_i32(), need("scale", Dtype::F32)?.to_f32());
        let (n, entries) = (keys.data.len() / 8, classes.data.len() / 4);
        let fits = keys.shape == [n, 2]
            && first.shape == [n + 1]
            && classes.shape == [entries]
            && counts.shape == [entries]
            && totals.len() == n_classes
            && scale.len() == 2;
        if !fits {
            return Err(Error::new(Code::Shape, format!("the n-grams' tensors do not fit {n_classes} classes")));
        }
        let out = Self {
            table,
            keys: place(&keys),
            first: place(&first),
            classes: place(&classes),
            counts: place(&counts),
            totals: totals.iter().map(|t| *t as f32).collect(),
            weight: scale[0],
            smoothing: scale[1],
            map: map.clone(),
        };
        let bad = |what: &str| Err(Error::new(Code::Value, format!("the n-grams' {what}")));
        if !(1..n).all(|i| out.key(i - 1) < out.key(i)) {
            return bad("keys do not ascend");
        }
        let at = |i: usize| out.int(&out.first, i);
        if at(0) != 0 || at(n) != entries as i32 || !(0..n).all(|i| at(i) < at(i + 1)) {
            return bad("entries do not ascend");
        }
        if !(0..entries)
            .all(|i| (0..n_classes as i32).contains(&out.int(&out.classes, i)) && out.int(&out.counts, i) > 0)
        {
            return bad("entries name a class or a count that cannot be");
        }
        // A smoothing of almost nothing would make a score infinite.
        if totals.iter().any(|t| *t < 0) || !(scale[0] >= 0.0 && scale[1] >= 1e-6 && scale[0] + scale[1] < 1e6) {
            return bad("totals or scale are out of range");
        }
        Ok(Some(out))
    }

    fn int(&self, range: &Range<usize>, i: usize) -> i32 {
        let at = range.start + 4 * i;
        i32::from_le_bytes([self.map[at], self.map[at + 1], self.map[at + 2], self.map[at + 3]])
    }

    fn key(&self, i: usize) -> Gram {
        (self.int(&self.keys, 2 * i), self.int(&self.keys, 2 * i + 1))
    }

    /// Number of grams that any class has.
    pub fn len(&self) -> usize {
        self.keys.len() / 8
    }

    /// True if no gram is known.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The classes that have a gram, with its count in each.
    fn entries(&self, gram: Gram) -> Option<Range<usize>> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let mid = low.midpoint(high);
            if self.key(mid) < gram { low = mid + 1 } else { high = mid }
        }
        let found = low < self.len() && self.key(low) == gram;
        found.then(|| self.int(&self.first, low) as usize..self.int(&self.first, low + 1) as usize)
    }

    /// Adds to each class's score `weight · Σ log p(gram | class)` over the grams any class has,
    /// `p = (count + smoothing) / (total + smoothing · grams)`. Returns the same of all classes together,
    /// as if they were one: what [`crate::novelty`] measures the best class against.
    ///
    /// # Panics
    /// If there are fewer scores than classes.
    pub fn add_scores(&self, words: Words<'_>, scores: &mut [f32]) -> f32 {
        let (mut known, mut together) = (0.0f32, 0.0f32);
        let mut log_p = vec![0.0f32; self.totals.len()];
        let grams = self.table.grams(words);
        let scale = self.table.scale(grams.len());
        for gram in grams {
            let Some(entries) = self.entries(gram) else { continue };
            known += 1.0;
            let mut sum = self.smoothing;
            for i in entries {
                let count = self.int(&self.counts, i) as f32;
                // What the count adds to a gram the class lacks, which all get below.
                log_p[self.int(&self.classes, i) as usize] += (count / self.smoothing).ln_1p();
                sum += count;
            }
            together += sum.ln();
        }
        let weight = self.weight * scale;
        for ((score, log_p), total) in scores.iter_mut().zip(log_p).zip(&self.totals) {
            let absent = (self.smoothing / (total + self.smoothing * self.len() as f32)).ln();
            *score += weight * (log_p + known * absent);
        }
        let total = self.totals.iter().sum::<f32>() + self.smoothing * self.len() as f32;
        weight * (together - known * total.max(f32::MIN_POSITIVE).ln())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensors::TensorsWriter;

    /// Two classes over grams of `[7]` and `[7, 8]`.
    fn payload(change: impl Fn(&str, &mut Vec<i32>)) -> Vec<u8> {
        let mut w = TensorsWriter::new();
        let mut add = |name: &str, shape: &dyn Fn(usize) -> Vec<usize>, v: &[i32]| {
            let mut v = v.to_vec();
            change(name, &mut v);
            w.add_i32(&Table::Tokens.tensor(name), &shape(v.len()), &v).unwrap();
        };
        add("keys", &|n| vec![n / 2, 2], &[-2, 7, -1, 7, -1, 8, 7, -2, 7, 8, 8, -2]);
        add("first", &|n| vec![n], &[0, 2, 4, 5, 6, 7, 8]);
        add("classes", &|n| vec![n], &[0, 1, 0, 1, 1, 0, 1, 1]);
        add("counts", &|n| vec![n], &[1, 2, 1, 2, 2, 1, 2, 2]);
        add("totals", &|n| vec![n], &[3, 10]);
        w.add_f32(&Table::Tokens.tensor("scale"), &[2], &[2.0, 0.5]).unwrap();
        w.finish().unwrap()
    }

    fn load(bytes: Vec<u8>) -> Result<Option<Ngrams>> {
        let map = Mapped::from_vec(bytes);
        let range = 0..map.len();
        Ngrams::load(Table::Tokens, &map, range, 2)
    }

    fn words(tokens: &[u32]) -> Words<'_> {
        Words { tokens, text: "" }
    }

    #[test]
    fn characters_are_counted_within_words_and_once() {
        let grams = |text: &str| of_characters(text);
        // " ab " has three grams of two characters, two of three, one of four and none of five.
        assert_eq!(grams("ab").len(), 3 + 2 + 1);
        assert_eq!(grams("AB ab"), grams("ab"), "in lower case, and once");
        assert_eq!(grams("ab c").len(), 6 + 2 + 1, "no gram spans two words");
        assert!(grams("").is_empty() && grams(" \t ").is_empty());
        let shared = |a: &str, b: &str| grams(a).iter().filter(|g| grams(b).contains(g)).count();
        assert!(shared("cancelled", "canceled") > shared("cancelled", "confirmed"));
        assert!(!grams("\u{1f600}\u{301}").is_empty());
    }

    #[test]
    fn scores_are_naive_bayes() {
        let n = load(payload(|_, _| {})).unwrap().unwrap();
        assert_eq!(of_tokens(&[7, 9]), [(-1, 7), (-1, 9), (-2, 7), (7, 9), (9, -2)]);
        let mut got = [1.0, 1.0];
        let together = n.add_scores(words(&[7, 9]), &mut got);
        // Known: (-1, 7) and (-2, 7), once each in class 0, twice in class 1; six grams in all.
        let p = |count: f32, total: f32| ((count + 0.5) / (total + 3.0)).ln();
        for (got, want) in got.iter().zip([4.0 * p(1.0, 3.0), 4.0 * p(2.0, 10.0)]) {
            assert!((got - 1.0 - want).abs() < 1e-5, "{got} for {want}");
        }
        // Both grams occur three times among thirteen.
        assert!((together - 4.0 * p(3.0, 13.0)).abs() < 1e-5, "{together}");
        let mut long = [0.0, 0.0];
        n.add_scores(words(&[7; 1000]), &mut long);
        assert!(long.iter().all(|s| s.abs() < 2.0 * 64.0 * 5.0), "{long:?}");
    }

    #[test]
    fn damage_is_refused() {
        assert!(load(TensorsWriter::new().finish().unwrap()).unwrap().is_none());
        for (name, at, value) in
            [("keys", 2, 9), ("first", 1, 9), ("classes", 0, 2), ("counts", 3, 0), ("totals", 0, -1)]
        {
            let broken = payload(|n, v| {
                if n == name {
                    v[at] = value;
                }
            });
            assert!(load(broken).is_err(), "{name}");
        }
        let short = payload(|n, v| {
            if n == "counts" {
                v.pop();
            }
        });
        assert_eq!(load(short).unwrap_err().code(), Code::Shape);
    }
}
