//! When an input is refused: a limit for each task, with a promise.
//!
//! A task keeps the novelty of some rows of its own (`n` calibration rows, none of which the measure has seen). A
//! new row of the task is exchangeable with them, so the share of them that is at least as novel is a *conformal
//! p-value* (Vovk et al. 2005): `p = (1 + #{novelty_i >= novelty}) / (n + 1)`, at most `α` with probability at most
//! `α`. An input is refused if every task refuses it. More tasks can therefore only lessen the share of a task's own
//! rows that is refused, whatever they are.
//!
//! A limit from few rows is itself uncertain. A task's limit is its `k + 1`-th largest novelty for the largest `k`
//! such that a share above `α` beyond it would show at most `k` rows beyond it with probability at most
//! `1 -` [`SURE`] (the tolerance limit of Wilks 1941). So with probability [`SURE`] over the calibration rows at most
//! `α` of the task's rows are refused. That takes 45 rows at `α = 0.05`; a task with fewer promises nothing, and
//! while there is such a task nothing is refused: any input might be its own.
//!
//! Payload, beside a selector's weights: [`NOVELTIES`] F32, ascending within each task (left out if there are none,
//! because no tensor is empty), [`ROWS`] I32 `[tasks]` and [`SHARE`] F32 `[1]`, which is `α`.

use crate::tensors::{Tensors, TensorsWriter};
use crate::{Code, Error, Result};

/// Name of the novelties of calibration rows.
pub const NOVELTIES: &str = "refusal.novelties";
/// Name of the number of calibration rows of each task.
pub const ROWS: &str = "refusal.rows";
/// Name of the share of a task's rows that may be refused.
pub const SHARE: &str = "refusal.share";
/// How sure the promise is.
pub const SURE: f64 = 0.9;

/// The calibration rows of all tasks, and what follows from them.
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    share: f32,
    /// Novelties of each task's calibration rows, ascending.
    tasks: Vec<Vec<f32>>,
    /// The largest novelty that each task accepts; `None` if it has too few rows.
    limits: Vec<Option<f32>>,
}

impl Refusal {
    /// Limits from the novelties of each task's calibration rows, of whose kind at most `share` may be refused.
    pub fn new(share: f32, mut tasks: Vec<Vec<f32>>) -> Self {
        tasks.iter_mut().for_each(|t| t.sort_by(f32::total_cmp));
        let limit = |t: &Vec<f32>| beyond(t.len(), f64::from(share)).map(|k| t[t.len() - 1 - k]);
        Self { limits: tasks.iter().map(limit).collect(), share, tasks }
    }

    /// Finds it in a selector's payload; `None` if there is none.
    ///
    /// # Errors
    /// If tensors are missing or do not fit each other or the number of tasks.
    pub fn load(payload: &[u8], n_tasks: usize) -> Result<Option<Self>> {
        let t = Tensors::parse(payload)?;
        let Some(rows) = t.get(ROWS) else { return Ok(None) };
        let need = |name: &str| {
            t.get(name).map(|t| t.to_f32()).ok_or_else(|| Error::new(Code::Missing, format!("no tensor {name:?}")))
        };
        let (rows, share) = (rows.to_i32(), need(SHARE)?);
        let all = if rows.iter().all(|n| *n == 0) { Vec::new() } else { need(NOVELTIES)? };
        let sum = rows.iter().try_fold(0usize, |sum, n| sum.checked_add(usize::try_from(*n).ok()?));
        if sum != Some(all.len()) || rows.len() != n_tasks || share.len() != 1 {
            return Err(Error::new(
                Code::Shape,
                format!("{} calibration rows of {} tasks, for {n_tasks} tasks", all.len(), rows.len()),
            ));
        }
        if !(0.0..=1.0).contains(&share[0]) || all.iter().any(|v| !v.is_finite()) {
            return Err(Error::new(Code::Value, "the share or a novelty of the refusal is out of range"));
        }
        let mut all = all.as_slice();
        let take = |n: &i32| {
            let (mine, rest) = all.split_at(*n as usize);
            all = rest;
            mine.to_vec()
        };
        let tasks: Vec<Vec<f32>> = rows.iter().map(take).collect();
        if tasks.iter().any(|t| !t.is_sorted()) {
            return Err(Error::new(Code::Value, "the novelties of the refusal do not ascend"));
        }
        Ok(Some(Self::new(share[0], tasks)))
    }

    /// Adds it to a payload.
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn write(&self, w: &mut TensorsWriter<'_>) -> Result<()> {
        let all = self.tasks.concat();
        let rows: Vec<i32> = self.tasks.iter().map(|t| t.len() as i32).collect();
        if !all.is_empty() {
            w.add_f32(NOVELTIES, &[all.len()], &all)?;
        }
        w.add_i32(ROWS, &[rows.len()], &rows)?;
        w.add_f32(SHARE, &[1], &[self.share])
    }

    /// The share of a task's rows that may be refused.
    pub fn share(&self) -> f32 {
        self.share
    }

    /// Number of calibration rows of a task.
    pub fn rows(&self, task: usize) -> usize {
        self.tasks[task].len()
    }

    /// The tasks with too few rows for a promise; if there is one, nothing is refused.
    pub fn unsure(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.limits.len()).filter(|t| self.limits[*t].is_none())
    }

    /// For an input with this novelty to each task: its largest p-value, and whether it is refused.
    pub fn verdict(&self, novelties: &[f32]) -> (f32, bool) {
        let p = |(value, rows): (&f32, &Vec<f32>)| {
            let at_least = rows.len() - rows.partition_point(|r| r < value);
            (1 + at_least) as f32 / (1 + rows.len()) as f32
        };
        let best = novelties.iter().zip(&self.tasks).map(p).fold(0.0, f32::max);
        let refuses = |(value, limit): (&f32, &Option<f32>)| limit.is_some_and(|l| *value > l);
        (best, novelties.iter().zip(&self.limits).all(refuses))
    }
}

/// The most rows of `n` that may lie beyond a limit that promises `share`; `None` if even none would be too many.
fn beyond(n: usize, share: f64) -> Option<usize> {
    if share <= 0.0 {
        return None;
    }
    let (mut term, mut sum, mut k) = ((1.0 - share).powf(n as f64), 0.0, 0);
    // The binomial distribution, summed from none on.
    while k < n && sum + term <= 1.0 - SURE {
        sum += term;
        term *= (n - k) as f64 / (k + 1) as f64 * share / (1.0 - share);
        k += 1;
    }
    k.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_promise_takes_the_rows_that_the_binomial_says() {
        let cases = [(44, None), (45, Some(0)), (76, Some(0)), (77, Some(1)), (105, Some(2)), (0, None)];
        for (n, want) in cases {
            assert_eq!(beyond(n, 0.05), want, "{n}");
        }
        assert_eq!((beyond(22, 0.1), beyond(21, 0.1), beyond(50, 0.0)), (Some(0), None, None));
    }

    #[test]
    fn an_input_is_refused_if_every_task_refuses_it() {
        let rows = |from: usize, n: usize| (from..from + n).rev().map(|v| v as f32).collect::<Vec<f32>>();
        let two = Refusal::new(0.05, vec![rows(0, 45), rows(100, 77)]);
        // Limits are 44 and, with one row beyond it, 175.
        assert_eq!(two.verdict(&[44.0, 500.0]), (2.0 / 46.0, false));
        assert_eq!(two.verdict(&[44.5, 175.5]), (2.0 / 78.0, true));
        assert_eq!(two.verdict(&[44.5, 175.0]), (3.0 / 78.0, false));
        assert_eq!(two.unsure().count(), 0);
        let few = Refusal::new(0.05, vec![rows(0, 45), rows(100, 44)]);
        assert_eq!(few.unsure().collect::<Vec<_>>(), [1]);
        assert!(!few.verdict(&[1e9, 1e9]).1, "nothing is refused while a task promises nothing");
    }

    /// Uniform novelties: over many draws of 60 calibration rows the share refused is above 5 % in about one of ten.
    #[test]
    fn the_promise_is_kept_as_often_as_it_says() {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let mut broken = 0;
        for _ in 0..2000 {
            let rows = (0..60).map(|_| (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32).collect();
            let limit = Refusal::new(0.05, vec![rows]).limits[0].unwrap();
            broken += usize::from(1.0 - limit > 0.05);
        }
        // No row beyond the limit of 60: 0.95^60 = 4.6 %.
        assert!((50..140).contains(&broken), "{broken} of 2000");
    }

    #[test]
    fn payloads_round_trip_and_damage_is_refused() {
        let r = Refusal::new(0.1, vec![vec![2.0, 1.0], vec![], vec![0.5]]);
        let mut w = TensorsWriter::new();
        r.write(&mut w).unwrap();
        let payload = w.finish().unwrap();
        assert_eq!(Refusal::load(&payload, 3).unwrap(), Some(r));
        assert_eq!(Refusal::load(&payload, 2).unwrap_err().code(), Code::Shape);
        assert_eq!(Refusal::load(&TensorsWriter::new().finish().unwrap(), 2).unwrap(), None);
        let none = Refusal::new(0.1, vec![vec![], vec![]]);
        let mut w = TensorsWriter::new();
        none.write(&mut w).unwrap();
        let read = Refusal::load(&w.finish().unwrap(), 2).unwrap().unwrap();
        assert_eq!((read.verdict(&[1e9, 1e9]), read.unsure().count()), ((1.0, false), 2), "no rows, no promise");
        assert_eq!(read, none);
        let made = |novelties: &[f32], rows: &[i32], share: f32| {
            let mut w = TensorsWriter::new();
            w.add_f32(NOVELTIES, &[novelties.len()], novelties).unwrap();
            w.add_i32(ROWS, &[rows.len()], rows).unwrap();
            w.add_f32(SHARE, &[1], &[share]).unwrap();
            Refusal::load(&w.finish().unwrap(), rows.len()).unwrap_err().code()
        };
        assert_eq!(made(&[1.0, 2.0], &[3], 0.1), Code::Shape);
        assert_eq!(made(&[1.0], &[2, -1], 0.1), Code::Shape);
        assert_eq!(made(&[2.0, 1.0], &[2], 0.1), Code::Value);
        assert_eq!(made(&[1.0], &[1], 1.5), Code::Value);
    }
}
