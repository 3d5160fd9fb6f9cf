//! Solves symmetric positive-definite systems in `f64`.

use conpet_formats::{Code, Error, Result};
use rayon::prelude::*;

/// The Cholesky factor of a matrix given as lower triangle by rows.
#[derive(Debug)]
pub struct Cholesky {
    n: usize,
    /// Lower triangle by rows.
    l: Vec<f64>,
}

fn start(i: usize) -> usize {
    i * (i + 1) / 2
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Four running sums let the compiler use vectors.
    let mut s = [0.0; 4];
    let (ca, cb) = (a.chunks_exact(4), b.chunks_exact(4));
    let tail: f64 = ca.remainder().iter().zip(cb.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in ca.zip(cb) {
        (0..4).for_each(|i| s[i] += x[i] * y[i]);
    }
    s[0] + s[1] + s[2] + s[3] + tail
}

impl Cholesky {
    /// Factors `a [n (n + 1) / 2]`.
    ///
    /// # Errors
    /// If the matrix is not positive definite.
    pub fn new(a: Vec<f64>, n: usize) -> Result<Self> {
        let mut l = a;
        // Left-looking, one block of columns at a time: below the block, rows are independent.
        const BLOCK: usize = 64;
        for from in (0..n).step_by(BLOCK) {
            let to = (from + BLOCK).min(n);
            let (done, rest) = l.split_at_mut(start(from));
            let _ = done;
            let (head, tail) = rest.split_at_mut(start(to) - start(from));
            let row = |i: usize| start(i) - start(from);
            for i in from..to {
                for j in from..=i {
                    let (ri, rj) = (row(i), row(j));
                    let s = dot(&head[ri..ri + j], &head[rj..rj + j]);
                    let v = head[ri + j] - s;
                    head[ri + j] = if i == j {
                        if !(v > 0.0) {
                            return Err(Error::new(
                                Code::NotFinite,
                                format!("the matrix is not positive definite at {i}"),
                            )
                            .hint("raise --shrinkage, or give each class more rows"));
                        }
                        v.sqrt()
                    } else {
                        v / head[rj + j]
                    };
                }
            }
            let mut rows = Vec::with_capacity(n - to);
            let mut rest = tail;
            for i in to..n {
                let (r, t) = rest.split_at_mut(i + 1);
                rows.push(r);
                rest = t;
            }
            let head = &*head;
            rows.into_par_iter().for_each(|r| {
                for j in from..to {
                    let rj = row(j);
                    r[j] = (r[j] - dot(&r[..j], &head[rj..rj + j])) / head[rj + j];
                }
            });
        }
        Ok(Self { n, l })
    }

    /// The inverse of the factor, `L⁻¹`, a lower triangle by rows.
    pub fn inverse(&self) -> Vec<f64> {
        let columns: Vec<Vec<f64>> = (0..self.n)
            .into_par_iter()
            .map(|j| {
                // Forward substitution on a unit vector; what lies above it stays zero.
                let mut x = vec![0.0; self.n - j];
                for i in j..self.n {
                    let r = &self.l[start(i)..=start(i) + i];
                    let unit = if i == j { 1.0 } else { 0.0 };
                    x[i - j] = (unit - dot(&r[j..i], &x[..i - j])) / r[i];
                }
                x
            })
            .collect();
        (0..self.n).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|(i, j)| columns[j][i - j]).collect()
    }

    /// Solves `A x = b` in place.
    pub fn solve(&self, b: &mut [f64]) {
        for i in 0..self.n {
            let r = &self.l[start(i)..start(i) + i + 1];
            b[i] = (b[i] - dot(&r[..i], &b[..i])) / r[i];
        }
        for i in (0..self.n).rev() {
            let r = &self.l[start(i)..start(i) + i + 1];
            b[i] /= r[i];
            let x = b[i];
            b[..i].iter_mut().zip(r).for_each(|(b, l)| *b -= l * x);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn solves_and_refuses() {
        let n = 150;
        // A = M Mᵀ + I for an uneven M.
        let m: Vec<f64> = (0..n * n).map(|i| ((i * 7919 % 101) as f64 / 50.0) - 1.0).collect();
        let mut a = Vec::new();
        for i in 0..n {
            for j in 0..=i {
                let s = dot(&m[i * n..(i + 1) * n], &m[j * n..(j + 1) * n]);
                a.push(s + f64::from(u8::from(i == j)));
            }
        }
        let want: Vec<f64> = (0..n).map(|i| (i as f64).sin()).collect();
        let at = |i: usize, j: usize| if i >= j { a[start(i) + j] } else { a[start(j) + i] };
        let mut b: Vec<f64> = (0..n).map(|i| (0..n).map(|j| at(i, j) * want[j]).sum()).collect();
        let factor = Cholesky::new(a.clone(), n).unwrap();
        let inverse = factor.inverse();
        for (i, j) in [(0, 0), (149, 0), (149, 149), (77, 30)] {
            let product: f64 = (j..=i).map(|k| factor.l[start(i) + k] * inverse[start(k) + j]).sum();
            assert!((product - f64::from(u8::from(i == j))).abs() < 1e-9, "{i} {j}: {product}");
        }
        factor.solve(&mut b);
        b.iter().zip(&want).for_each(|(x, w)| assert!((x - w).abs() < 1e-6, "{x} for {w}"));
        assert!(Cholesky::new(vec![1.0, 2.0, 1.0], 2).is_err());
    }
}
