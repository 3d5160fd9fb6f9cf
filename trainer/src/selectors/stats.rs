//! Sufficient statistics of features by class: counts, sums, and the sum of outer products.

use crate::nn::matmul::{View, matmul};
use conpet_formats::tensors::{Tensors, TensorsWriter};
use conpet_formats::{Code, Error, Result};

/// Statistics of all features so far.
#[derive(Debug, Clone, PartialEq)]
pub struct Stats {
    /// Length of a feature.
    pub dim: usize,
    /// Rows of each class.
    pub counts: Vec<u64>,
    /// Sum of each class's features, `[classes, dim]`.
    pub sums: Vec<f64>,
    /// `Σ x xᵀ`, lower triangle by rows, `dim (dim + 1) / 2`.
    pub moment: Vec<f64>,
}

impl Stats {
    /// Empty statistics.
    pub fn new(dim: usize) -> Self {
        Self { dim, counts: Vec::new(), sums: Vec::new(), moment: vec![0.0; dim * (dim + 1) / 2] }
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.counts.len()
    }

    /// Makes room for `n` more classes.
    pub fn grow(&mut self, n: usize) {
        self.counts.resize(self.counts.len() + n, 0);
        self.sums.resize(self.counts.len() * self.dim, 0.0);
    }

    /// Adds rows `x [n, dim]` of the given classes.
    ///
    /// # Panics
    /// If a class is unknown or `x` has another width.
    pub fn add(&mut self, x: &[f32], classes: &[usize]) {
        let d = self.dim;
        assert_eq!(x.len(), classes.len() * d);
        for (row, c) in x.chunks_exact(d).zip(classes) {
            self.counts[*c] += 1;
            self.sums[c * d..(c + 1) * d].iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v));
        }
        // In blocks of rows and of the triangle: `xᵀ x` as matrix products in f64.
        const ROWS: usize = 1024;
        const COLUMNS: usize = 256;
        let threads = rayon::current_num_threads();
        for x in x.chunks(ROWS * d) {
            let x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
            let x = View::new(&x, d);
            for from in (0..d).step_by(COLUMNS) {
                let to = (from + COLUMNS).min(d);
                let block = matmul(x.columns(from..to).t(), x.columns(0..to), threads);
                for (i, row) in (from..to).zip(block.chunks_exact(to)) {
                    let at = i * (i + 1) / 2;
                    self.moment[at..=at + i].iter_mut().zip(row).for_each(|(m, v)| *m += v);
                }
            }
        }
    }

    /// Total rows.
    pub fn rows(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The mean feature of each class; zeros for a class without rows.
    pub fn means(&self) -> Vec<f64> {
        self.sums
            .chunks_exact(self.dim)
            .zip(&self.counts)
            .flat_map(|(s, n)| s.iter().map(move |v| v / (*n).max(1) as f64))
            .collect()
    }

    /// The mean feature of all rows.
    pub fn mean(&self) -> Vec<f64> {
        let n = self.rows().max(1) as f64;
        (0..self.dim).map(|i| self.sums.iter().skip(i).step_by(self.dim).sum::<f64>() / n).collect()
    }

    /// The pooled covariance within classes, lower triangle by rows.
    pub fn covariance_within(&self) -> Vec<f64> {
        let free = (self.rows() as f64 - self.classes() as f64).max(1.0);
        let means = self.means();
        self.less(means.chunks_exact(self.dim).zip(&self.counts).map(|(m, n)| (m, *n as f64)), free)
    }

    /// The covariance of all rows, lower triangle by rows.
    pub fn covariance_of_all(&self) -> Vec<f64> {
        let n = self.rows() as f64;
        self.less(std::iter::once((self.mean().as_slice(), n)), n.max(1.0))
    }

    /// `(Σ x xᵀ - Σ n m mᵀ) / over`.
    fn less<'m>(&self, means: impl Iterator<Item = (&'m [f64], f64)> + Clone, over: f64) -> Vec<f64> {
        let mut cov = self.moment.clone();
        let mut at = 0;
        for i in 0..self.dim {
            for (m, n) in means.clone() {
                let mi = n * m[i];
                cov[at..=at + i].iter_mut().zip(m).for_each(|(v, mj)| *v -= mi * mj);
            }
            at += i + 1;
        }
        cov.iter_mut().for_each(|v| *v /= over);
        cov
    }

    /// Adds tensors to a payload that [`Stats::from_payload`] reads back (with f32 precision).
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn write(&self, w: &mut TensorsWriter<'_>) -> Result<()> {
        let n = self.rows().max(1) as f64;
        let counts: Vec<i32> = self.counts.iter().map(|c| *c as i32).collect();
        let means: Vec<f32> = self.means().iter().map(|v| *v as f32).collect();
        let moment: Vec<f32> = self.moment.iter().map(|v| (v / n) as f32).collect();
        w.add_i32("counts", &[counts.len()], &counts)?;
        w.add_f32("means", &[counts.len(), self.dim], &means)?;
        w.add_f32("moment", &[moment.len()], &moment)
    }

    /// Reads statistics from a bundle.
    ///
    /// # Errors
    /// If tensors are missing or do not fit `dim`.
    pub fn from_payload(bytes: &[u8], dim: usize) -> Result<Self> {
        let t = Tensors::parse(bytes)?;
        let need = |name: &str| t.get(name).ok_or_else(|| Error::new(Code::Missing, format!("no tensor {name:?}")));
        let counts: Vec<u64> = need("counts")?.to_i32().iter().map(|c| u64::try_from(*c).unwrap_or(0)).collect();
        let (means, moment) = (need("means")?.to_f32(), need("moment")?.to_f32());
        if means.len() != counts.len() * dim || moment.len() != dim * (dim + 1) / 2 {
            return Err(Error::new(
                Code::Shape,
                format!("statistics of {} classes do not fit features of {dim}", counts.len()),
            ));
        }
        let n = counts.iter().sum::<u64>() as f64;
        let sums = means.iter().enumerate().map(|(i, m)| f64::from(*m) * counts[i / dim] as f64).collect();
        Ok(Self { dim, counts, sums, moment: moment.iter().map(|m| f64::from(*m) * n).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_batching_do_not_matter_and_payloads_round_trip() {
        let x: Vec<f32> = (0..40).map(|i| (i as f32 * 0.9).sin()).collect();
        let c = [0, 1, 0, 2, 1, 0, 2, 2, 1, 0];
        let mut a = Stats::new(4);
        a.grow(3);
        a.add(&x, &c);
        let mut b = Stats::new(4);
        b.grow(2);
        b.add(&x[..8], &c[..2]);
        b.grow(1);
        for i in (2..10).rev() {
            b.add(&x[i * 4..(i + 1) * 4], &c[i..=i]);
        }
        let close = |a: &Stats, b: &Stats, tol: f64| {
            assert_eq!(a.counts, b.counts);
            a.sums
                .iter()
                .chain(&a.moment)
                .zip(b.sums.iter().chain(&b.moment))
                .for_each(|(x, y)| assert!((x - y).abs() < tol));
        };
        close(&a, &b, 1e-12);
        let mut w = TensorsWriter::new();
        a.write(&mut w).unwrap();
        let payload = w.finish().unwrap();
        close(&a, &Stats::from_payload(&payload, 4).unwrap(), 1e-5);
        assert!(Stats::from_payload(&payload, 5).is_err());
    }
}
