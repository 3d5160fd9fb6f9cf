//! Linear discriminant analysis: Gaussian classes with one shared covariance (Fisher 1936), joined with n-grams.
//!
//! `score[c] = (μ_c - μ)ᵀ Σ⁻¹ (x - ½ (μ_c + μ))` with the mean `μ` of all rows, equal priors (which is
//! `μ_cᵀ Σ⁻¹ x - ½ μ_cᵀ Σ⁻¹ μ_c` up to a term that all classes share); `Σ = (1 - γ) S + γ diag(S)` with the
//! pooled within-class covariance `S` (shrinkage towards "target D" of Schäfer & Strimmer 2005). Naive Bayes on token
//! and character n-grams stands beside it ([`super::ngrams`]).
//!
//! `γ`, the weights of the three witnesses and the temperature of their joint posterior are those under which a
//! sample of all tasks' rows, each left out of what it is scored by, is the most likely ([`super::gaussian`],
//! [`super::weights`]). Few rows ask for much shrinkage, many for little: no fixed value suits both.

use super::fitting::{Calibrated, Fit, Scores, class_task, earlier, enter, extended, feature_dim};
use super::gaussian::{Gaussian, LeftOut};
use super::ngrams::Counts;
use super::sample::Sample;
use super::stats::Stats;
use super::weights::{self, Row};
use crate::data::Prepared;
use crate::services::Services;
use crate::settings::range::{at_least_one, not_negative};
use crate::settings::settings;
use conpet_formats::Result;
use conpet_formats::bundle::Draft;
use conpet_formats::head::log_softmax;
use conpet_formats::ngrams::{Gram, Table};
use conpet_formats::selector::{FAST, Fast};
use conpet_formats::tensors::{Tensors, TensorsWriter};

settings! { "lda" Settings Flags {
    /// lda: weight of the n-gram classifiers beside the states, as a multiple of what suits rows left out best;
    /// 0 leaves them out.
    ngram_weight: f64 = 1.0, not_negative();
    /// lda: rows of each task whose features are kept to calibrate with.
    calibration_rows: usize = 160, at_least_one();
}}

/// Shrinkages that are tried.
const SHRINKAGES: [f64; 9] = [0.01, 0.03, 0.07, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95];
/// The first to be tried at a bundle's first task.
const FIRST: usize = 5;
/// Rows of the sample that a shrinkage is chosen by.
const TRIAL: usize = 320;
/// Tensor name of the n-grams' weight as it was set, and the shrinkage as it was found.
const CHOSEN: &str = "lda.chosen";

pub(super) fn fit(services: &mut Services<'_>, own: &Settings, draft: &mut Draft, new: &Fit<'_>) -> Result<bool> {
    let dim = feature_dim(services);
    let before = earlier(services, draft, new)?;
    let stats = extended(services, new, before.map(|x| x.1), &new.train.features, dim)?;
    let first = stats.classes() - services.tasks()[new.task].classes();
    let classes: Vec<usize> = new.train.classes.iter().map(|c| first + c).collect();
    // A bundle that began without n-grams continues without them, since the earlier rows can no longer be counted.
    let tables: Vec<Option<Counts>> = match before {
        Some((payload, _)) => {
            let read = Table::ALL.map(|t| Counts::read(t, payload).map_err(|e| e.in_section("selector")));
            read.into_iter().collect::<Result<_>>()?
        }
        None => Table::ALL.map(|t| (own.ngram_weight > 0.0).then(|| Counts::new(t))).to_vec(),
    };
    let mut counts: Vec<(Table, Counts)> =
        Table::ALL.into_iter().zip(tables).filter_map(|(t, c)| Some((t, c?))).collect();
    let mut grams: Vec<(Table, Vec<Vec<Gram>>)> = Vec::new();
    for (table, counts) in &mut counts {
        let rows: Vec<Vec<Gram>> = new.train.inputs.iter().map(|p| table.grams(p.words())).collect();
        counts.grow(stats.classes() - first);
        rows.iter().zip(&classes).for_each(|(grams, c)| counts.add(grams, *c));
        grams.push((*table, rows));
    }
    let kept: Vec<Table> = counts.iter().map(|(t, _)| *t).collect();
    let mut sample = match before {
        Some((_, carried)) => Sample::read(carried, dim, first, &kept).map_err(|e| e.in_section("selector sample"))?,
        None => None,
    }
    .unwrap_or_default();
    sample.add(&new.train.features, &classes, &grams, own.calibration_rows, services.settings().training.seed);
    let join = Joined { stats: &stats, counts: &counts, sample: &sample, task: class_task(draft) };
    let near = match before {
        Some((payload, _)) => stored(payload)?.map_or(FIRST, |(_, shrinkage)| nearest(shrinkage)),
        None => FIRST,
    };
    let shrinkage = match new.common.shrinkage {
        given if given >= 0.0 => given,
        _ => join.best_shrinkage(near),
    };
    let gaussian = Gaussian::new(&stats, shrinkage)?;
    let all: Vec<usize> = (0..sample.classes.len()).collect();
    let left_out = join.left_out(&gaussian, &all);
    let (weights, _) = join.weights(&left_out, &all);
    let mut payload = gaussian.scores().payload()?;
    gaussian.write(&mut payload)?;
    for ((_, counts), weight) in counts.iter().zip(&weights[1..]) {
        counts.write(own.ngram_weight * weight / weights[0], &mut payload)?;
    }
    if let Some(fast) = join.fast(&weights, &left_out).filter(|_| own.ngram_weight == 1.0) {
        payload.add_f32(FAST, &[2], &[fast.temperature, fast.threshold])?;
    }
    payload.add_f32(CHOSEN, &[2], &[own.ngram_weight as f32, shrinkage as f32])?;
    let mut carried = TensorsWriter::new();
    stats.write(&mut carried)?;
    sample.write(&mut carried)?;
    let calibrated = Calibrated { temperature: 1.0 / weights[0], novelties: join.novelties(&left_out) };
    enter(services, draft, new, payload, carried, calibrated)?;
    Ok(true)
}

/// See [`super::LeftOut`].
///
/// # Errors
/// If the draft's payloads cannot be read.
pub(super) fn left_out(
    services: &Services<'_>,
    draft: &Draft,
    data: &Prepared,
    rows: &[usize],
) -> Result<Option<Vec<Vec<f32>>>> {
    let (dim, entry) = (feature_dim(services), &draft.manifest.selector);
    let section = |s: Option<u32>| s.and_then(|s| draft.new_section(s));
    let Some((payload, carried)) = section(entry.section).zip(section(entry.stats)) else { return Ok(None) };
    let stats = Stats::from_payload(carried, dim)?;
    let shrinkage = stored(payload)?.map_or(SHRINKAGES[FIRST], |(_, s)| s);
    let first = stats.classes() - services.tasks()[draft.manifest.tasks.len() - 1].classes();
    let x: Vec<f32> = rows.iter().flat_map(|i| &data.features[i * dim..(i + 1) * dim]).copied().collect();
    let classes: Vec<usize> = rows.iter().map(|i| first + data.classes[*i]).collect();
    let mut scores = Gaussian::new(&stats, shrinkage)?.left_out(&x, &classes).scores;
    let n = stats.classes();
    for table in Table::ALL {
        let Some(counts) = Counts::read(table, payload)? else { continue };
        let weight = Tensors::parse(payload)?.get(&table.tensor("scale")).map_or(0.0, |t| t.to_f32()[0]);
        for ((row, i), class) in scores.chunks_exact_mut(n).zip(rows).zip(&classes) {
            let words = counts.left_out(&table.grams(data.inputs[*i].words()), *class);
            row.iter_mut().zip(words).for_each(|(s, w)| *s += weight * w);
        }
    }
    let own = |row: &[f32]| {
        let mut own = row[first..].to_vec();
        log_softmax(&mut own, entry.temperature.to_f64() as f32);
        own
    };
    Ok(Some(scores.chunks_exact(n).map(own).collect()))
}

/// What is counted of all tasks so far.
struct Joined<'a> {
    stats: &'a Stats,
    counts: &'a [(Table, Counts)],
    sample: &'a Sample,
    /// The task of each class.
    task: Vec<i32>,
}

impl Joined<'_> {
    /// Whether a row of the sample can be left out: its class has others, and there are other classes.
    fn usable(&self, i: usize) -> bool {
        self.stats.counts[self.sample.classes[i]] > 1 && self.stats.classes() > 1
    }

    /// Scores of some rows of the sample by the states, as if the rows had not been counted.
    fn left_out(&self, gaussian: &Gaussian, rows: &[usize]) -> LeftOut {
        let dim = self.stats.dim;
        let x: Vec<f32> = rows.iter().flat_map(|i| &self.sample.rows[i * dim..(i + 1) * dim]).copied().collect();
        let classes: Vec<usize> = rows.iter().map(|i| self.sample.classes[*i]).collect();
        gaussian.left_out(&x, &classes)
    }

    /// Weights of the states and of each table, and the cross-entropy of these rows with them.
    fn weights(&self, left_out: &LeftOut, rows: &[usize]) -> (Vec<f64>, f64) {
        let n = self.stats.classes();
        let usable: Vec<usize> = (0..rows.len()).filter(|k| self.usable(rows[*k])).collect();
        let task = |k: usize| self.task[self.sample.classes[rows[k]]];
        let mut of_task = vec![0u32; self.task.last().map_or(0, |t| *t as usize + 1)];
        usable.iter().for_each(|k| of_task[task(*k) as usize] += 1);
        let row = |k: &usize| {
            let (i, class) = (rows[*k], self.sample.classes[rows[*k]]);
            let words = self.counts.iter().zip(&self.sample.grams);
            let words = words.map(|((_, counts), (_, grams))| counts.left_out(&grams[i], class));
            let scores = std::iter::once(left_out.scores[k * n..(k + 1) * n].to_vec()).chain(words).collect();
            Row { scores, class, weight: 1.0 / f64::from(of_task[task(*k) as usize]) }
        };
        let rows: Vec<Row> = usable.iter().map(row).collect();
        let (mut w, cost) = weights::fit(&rows);
        if w.is_empty() {
            // No row can be left out. The states count as they are, the words a little.
            w = [1.0, 0.4, 0.2][..=self.counts.len()].to_vec();
        }
        // The others are written relative to the states'.
        w[0] = w.iter().fold(1e-4, |least, v| (1e-3 * v).max(least)).max(w[0]);
        (w, cost)
    }

    /// The shrinkage under which rows left out are the most likely, sought from one of [`SHRINKAGES`] on.
    fn best_shrinkage(&self, from: usize) -> f64 {
        let all = self.sample.classes.len();
        let rows: Vec<usize> = (0..all).step_by(all.div_ceil(TRIAL).max(1)).filter(|i| self.usable(*i)).collect();
        if rows.is_empty() {
            return SHRINKAGES[SHRINKAGES.len() - 1];
        }
        let mut costs = [None; SHRINKAGES.len()];
        let mut cost = |i: usize| {
            *costs[i].get_or_insert_with(|| match Gaussian::new(self.stats, SHRINKAGES[i]) {
                Ok(g) => self.weights(&self.left_out(&g, &rows), &rows).1,
                // Singular.
                Err(_) => f64::INFINITY,
            })
        };
        let mut at = from;
        loop {
            let sides = [at.checked_sub(1), Some(at + 1).filter(|i| *i < SHRINKAGES.len())];
            let next = sides.into_iter().flatten().min_by(|a, b| cost(*a).total_cmp(&cost(*b)));
            match next.filter(|n| cost(*n) < cost(at)) {
                Some(n) => at = n,
                None => return SHRINKAGES[at],
            }
        }
    }

    /// When the n-grams may answer alone: the least posterior of theirs above which so few rows left out get another
    /// answer than from all witnesses that it is half a percent of all rows at most.
    fn fast(&self, weights: &[f64], left_out: &LeftOut) -> Option<Fast> {
        let n = self.stats.classes();
        let usable: Vec<usize> = (0..self.sample.classes.len()).filter(|i| self.usable(*i)).collect();
        if self.counts.is_empty() || usable.is_empty() {
            return None;
        }
        let words = |i: &usize| {
            let mut sum = vec![0.0f32; n];
            for (((_, counts), (_, grams)), w) in self.counts.iter().zip(&self.sample.grams).zip(&weights[1..]) {
                let scores = counts.left_out(&grams[*i], self.sample.classes[*i]);
                sum.iter_mut().zip(scores).for_each(|(s, x)| *s += (*w / weights[0]) as f32 * x);
            }
            sum
        };
        let scores: Vec<Vec<f32>> = usable.iter().map(words).collect();
        let row =
            |(i, s): (&usize, &Vec<f32>)| Row { scores: vec![s.clone()], class: self.sample.classes[*i], weight: 1.0 };
        let rows: Vec<Row> = usable.iter().zip(&scores).map(row).collect();
        let temperature = 1.0 / weights::fit(&rows).0[0].max(1e-6) as f32;
        let open = Fast { temperature, threshold: 0.0 };
        let mut sure: Vec<(f32, bool)> = Vec::with_capacity(usable.len());
        for (i, s) in usable.iter().zip(scores) {
            let states = &left_out.scores[i * n..(i + 1) * n];
            let all: Vec<f32> = states.iter().zip(&s).map(|(a, b)| a + b).collect();
            let (class, p) = open.best(s);
            sure.push((p, open.best(all).0 != class));
        }
        sure.sort_by(|a, b| b.0.total_cmp(&a.0));
        let most = sure.len() / 200;
        // Above 1, where not even the surest may answer.
        let (mut threshold, mut flips) = (2.0, 0);
        for (p, flipped) in sure {
            flips += usize::from(flipped);
            if flips > most {
                break;
            }
            threshold = p;
        }
        Some(Fast { temperature, threshold })
    }

    /// The novelty of each task's rows of the sample, to their own task.
    fn novelties(&self, left_out: &LeftOut) -> Vec<Vec<f32>> {
        let n = self.stats.classes();
        let mut out = vec![Vec::new(); self.task.last().map_or(0, |t| *t as usize + 1)];
        for (i, class) in self.sample.classes.iter().enumerate().filter(|(i, _)| self.usable(*i)) {
            let own = self.task.iter().zip(&left_out.cosines[i * n..(i + 1) * n]);
            let best = own.filter(|(t, _)| **t == self.task[*class]).map(|(_, c)| *c).fold(-1.0, f32::max);
            out[self.task[*class] as usize].push(1.0 - best);
        }
        out
    }
}

/// The index of the shrinkage nearest to a stored one.
fn nearest(shrinkage: f64) -> usize {
    let far = |i: &usize| (SHRINKAGES[*i] - shrinkage).abs();
    (0..SHRINKAGES.len()).min_by(|a, b| far(a).total_cmp(&far(b))).unwrap_or(FIRST)
}

/// The weight of the n-grams as it was set for a payload's selector, and its shrinkage; `None` in bundles of earlier
/// versions.
fn stored(payload: &[u8]) -> Result<Option<(f64, f64)>> {
    let chosen = Tensors::parse(payload)?.get(CHOSEN).map(|t| t.to_f32());
    Ok(chosen.filter(|c| c.len() == 2).map(|c| (as_stored(c[0]), as_stored(c[1]))))
}

/// The weight of the n-grams that was set for a payload's selector; 0 if it has none.
///
/// # Errors
/// If the payload cannot be read.
pub(super) fn stored_weight(payload: &[u8]) -> Result<f64> {
    match stored(payload)? {
        Some((weight, _)) => Ok(weight),
        None => Ok(if Tensors::parse(payload)?.get(&Table::Tokens.tensor("keys")).is_some() { 1.0 } else { 0.0 }),
    }
}

/// The weight that a stored f32 stands for: the shortest decimal that rounds to it.
pub(super) fn as_stored(weight: f32) -> f64 {
    weight.to_string().parse().unwrap_or_else(|_| f64::from(weight))
}

/// Solves for the scores.
///
/// # Errors
/// If the covariance is singular even after shrinking.
pub fn solve(s: &Stats, shrinkage: f64) -> Result<Scores> {
    Ok(Gaussian::new(s, shrinkage)?.scores())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    /// Many dimensions of which one tells the classes apart: few rows ask for more shrinkage than many.
    #[test]
    fn few_rows_are_shrunk_more_than_many() {
        let dim = 24;
        let found = |rows: usize| {
            let mut rng = Stream::new(4, "t", 0);
            let mut stats = Stats::new(dim);
            stats.grow(2);
            let classes: Vec<usize> = (0..rows).map(|i| i % 2).collect();
            let x: Vec<f32> = classes
                .iter()
                .flat_map(|c| {
                    let shared = rng.symmetric(1, 2.0)[0];
                    let mut x: Vec<f32> = rng.symmetric(dim, 1.0).iter().map(|v| v + shared).collect();
                    x[0] += 1.5 * *c as f32;
                    x
                })
                .collect();
            stats.add(&x, &classes);
            let mut sample = Sample::default();
            sample.add(&x, &classes, &[], 300, 1);
            let join = Joined { stats: &stats, counts: &[], sample: &sample, task: vec![0, 0] };
            join.best_shrinkage(FIRST)
        };
        let (few, many) = (found(16), found(1200));
        assert!(many < few, "{few} {many}");
    }

    #[test]
    fn separates_gaussians_along_the_right_direction() {
        // Two classes differ in x1 only; x0 has large noise that is correlated with x1's. Both are far from the
        // origin, which must not affect the scores.
        let mut rng = Stream::new(1, "t", 0);
        let mut s = Stats::new(2);
        s.grow(2);
        let mut rows = Vec::new();
        for i in 0..400 {
            let (a, b) = (rng.symmetric(1, 5.0)[0], rng.symmetric(1, 0.5)[0]);
            let c = i % 2;
            rows.push((vec![a + 300.0, 0.2 * a + b + c as f32 - 200.0], c));
        }
        rows.iter().for_each(|(x, c)| s.add(x, &[*c]));
        let f = solve(&s, 1e-3).unwrap();
        assert!(f.bias.iter().all(|b| b.abs() < 5e3), "{:?}", f.bias);
        let score = |x: &[f32], c: usize| f.weight[2 * c] * x[0] + f.weight[2 * c + 1] * x[1] + f.bias[c];
        let right = rows.iter().filter(|(x, c)| score(x, *c) > score(x, 1 - c)).count();
        assert!(right > 395, "{right} of 400");
    }
}
