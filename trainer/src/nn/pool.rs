//! Pools ranges of tokens: `[tokens, hidden]` to `[ranges, hidden]`.

use super::{operand, with_numbers};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use conpet_formats::feature::Reduce;
use std::ops::Range;

struct Pool(Vec<(Range<usize>, Reduce)>);

/// The mean, largest or smallest value of each column over each range of rows; an empty range
/// gives zeros.
pub fn pool(x: &Tensor, ranges: Vec<(Range<usize>, Reduce)>) -> Result<Tensor> {
    x.apply_op1(Pool(ranges))
}

/// The row of `range` whose value in `column` is the largest or smallest.
fn taken(x: &[f32], h: usize, range: &Range<usize>, column: usize, reduce: Reduce) -> Option<usize> {
    range.clone().reduce(|a, b| if reduce.prefers(x[b * h + column], x[a * h + column]) { b } else { a })
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, h) = (operand(x, l)?, l.dims()[1]);
        let mut out = vec![0.0; self.0.len() * h];
        for (o, (r, reduce)) in out.chunks_exact_mut(h).zip(&self.0) {
            if *reduce == Reduce::Mean {
                let w = 1.0 / r.len().max(1) as f32;
                for row in x[r.start * h..r.end * h].chunks_exact(h) {
                    o.iter_mut().zip(row).for_each(|(o, v)| *o += w * v);
                }
                continue;
            }
            for (c, o) in o.iter_mut().enumerate() {
                *o = taken(x, h, r, c, *reduce).map_or(0.0, |row| x[row * h + c]);
            }
        }
        Ok((CpuStorage::F32(out), (self.0.len(), h).into()))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let h = x.dim(1)?;
        let mut dx = vec![0.0; x.elem_count()];
        with_numbers(x, |x| {
            with_numbers(dy, |g| {
                for (g, (r, reduce)) in g.chunks_exact(h).zip(&self.0) {
                    if *reduce == Reduce::Mean {
                        let w = 1.0 / r.len().max(1) as f32;
                        for row in dx[r.start * h..r.end * h].chunks_exact_mut(h) {
                            row.iter_mut().zip(g).for_each(|(d, g)| *d += w * g);
                        }
                        continue;
                    }
                    for (c, g) in g.iter().enumerate() {
                        if let Some(row) = taken(x, h, r, c, *reduce) {
                            dx[row * h + c] += g;
                        }
                    }
                }
            })
        })??;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::check::{gradients, wave};

    #[test]
    fn gradient_is_exact_for_overlapping_ranges() {
        gradients(&[(wave(20, 0.0), vec![5, 4])], |t| {
            pool(
                &t[0],
                vec![
                    (0..5, Reduce::Mean),
                    (4..5, Reduce::Mean),
                    (1..3, Reduce::Mean),
                    (2..2, Reduce::Mean),
                    (1..5, Reduce::Max),
                    (0..4, Reduce::Min),
                    (3..3, Reduce::Max),
                ],
            )
        });
    }
}
