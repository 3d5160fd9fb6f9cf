//! Chooses the rows of a class to remember.

use crate::rng::Stream;
use serde::{Deserialize, Serialize};

/// How rows are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The row nearest to each of m k-means centres of the normalised features (CRL, EMR; two centres may share
    /// a row).
    Kmeans,
    /// Rows chosen one after another so that their mean stays nearest to the class's mean (iCaRL, Rebuffi et
    /// al. 2017).
    Herding,
    /// Reservoir sampling in one pass (Vitter 1985, algorithm R).
    Reservoir,
    /// m rows at random.
    Random,
}

impl Way {
    /// Whether it uses the rows' features.
    pub fn looks(self) -> bool {
        matches!(self, Self::Kmeans | Self::Herding)
    }
}

/// Chooses at most `m` of a class's `n` rows by their features `points`, which `random` and `reservoir` do not
/// use; returns their indices.
pub fn choose(how: Way, m: usize, n: usize, points: &[&[f32]], rng: &mut Stream) -> Vec<usize> {
    if n <= m {
        return (0..n).collect();
    }
    match how {
        Way::Kmeans => kmeans(m, &normalised(points), rng),
        Way::Herding => herding(m, &normalised(points)),
        Way::Reservoir => reservoir(m, n, rng),
        Way::Random => {
            let mut all: Vec<usize> = (0..n).collect();
            rng.shuffle(&mut all);
            all.truncate(m);
            all
        }
    }
}

fn normalised(points: &[&[f32]]) -> Vec<Vec<f32>> {
    let one = |p: &&[f32]| {
        let norm = p.iter().map(|v| v * v).sum::<f32>().sqrt().max(1e-12);
        p.iter().map(|v| v / norm).collect()
    };
    points.iter().map(one).collect()
}

fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(x, y)| (x - y) * (x - y)).sum()
}

/// The nearest of some points, and how far it is.
fn nearest<'a>(to: &[f32], points: impl Iterator<Item = &'a Vec<f32>>) -> (usize, f32) {
    let all = points.map(|p| distance(p, to)).enumerate();
    all.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
}

/// Lloyd's algorithm from k-means++ centres (Arthur & Vassilvitskii 2007).
fn kmeans(m: usize, points: &[Vec<f32>], rng: &mut Stream) -> Vec<usize> {
    let mut centres = vec![points[rng.below(points.len())].clone()];
    while centres.len() < m {
        let far: Vec<f32> = points.iter().map(|p| nearest(p, centres.iter()).1).collect();
        let mut left = rng.uniform() * far.iter().sum::<f32>();
        let next = far.iter().position(|d| {
            left -= d;
            left < 0.0
        });
        // All points coincide with centres already: any will do.
        centres.push(points[next.unwrap_or_else(|| rng.below(points.len()))].clone());
    }
    let mut member = vec![usize::MAX; points.len()];
    for _ in 0..50 {
        let now: Vec<usize> = points.iter().map(|p| nearest(p, centres.iter()).0).collect();
        if now == member {
            break;
        }
        member = now;
        for (c, centre) in centres.iter_mut().enumerate() {
            let own: Vec<&Vec<f32>> = points.iter().zip(&member).filter(|(_, m)| **m == c).map(|(p, _)| p).collect();
            if own.is_empty() {
                continue;
            }
            for (i, v) in centre.iter_mut().enumerate() {
                *v = own.iter().map(|p| p[i]).sum::<f32>() / own.len() as f32;
            }
        }
    }
    let mut out: Vec<usize> = centres.iter().map(|c| nearest(c, points.iter()).0).collect();
    out.sort_unstable();
    out.dedup();
    out
}

fn herding(m: usize, points: &[Vec<f32>]) -> Vec<usize> {
    let dim = points[0].len();
    let mean: Vec<f32> = (0..dim).map(|i| points.iter().map(|p| p[i]).sum::<f32>() / points.len() as f32).collect();
    let (mut out, mut sum) = (Vec::with_capacity(m), vec![0.0; dim]);
    while out.len() < m {
        let k = (out.len() + 1) as f32;
        // The row that would make the chosen rows' mean exact.
        let want: Vec<f32> = mean.iter().zip(&sum).map(|(u, s)| u * k - s).collect();
        let free = (0..points.len()).filter(|i| !out.contains(i));
        let Some(next) = free.min_by(|a, b| distance(&points[*a], &want).total_cmp(&distance(&points[*b], &want)))
        else {
            break;
        };
        sum.iter_mut().zip(&points[next]).for_each(|(s, v)| *s += v);
        out.push(next);
    }
    out
}

fn reservoir(m: usize, n: usize, rng: &mut Stream) -> Vec<usize> {
    let mut out: Vec<usize> = (0..m).collect();
    for i in m..n {
        let at = rng.below(i + 1);
        if at < m {
            out[at] = i;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three clusters on the unit circle, of very different sizes.
    fn clumps() -> Vec<Vec<f32>> {
        let mut rng = Stream::new(1, "clumps", 0);
        let sizes = [(0.0f32, 60), (2.0, 25), (4.0, 5)];
        let clump = |(angle, n): (f32, usize)| (0..n).map(move |_| angle).collect::<Vec<_>>();
        let angles = sizes.into_iter().flat_map(clump);
        angles.map(|a| a + rng.symmetric(1, 0.1)[0]).map(|a| vec![3.0 * a.cos(), 3.0 * a.sin()]).collect()
    }

    fn chosen(how: Way, m: usize) -> Vec<usize> {
        let points = clumps();
        let points: Vec<&[f32]> = points.iter().map(Vec::as_slice).collect();
        let mut out = choose(how, m, points.len(), &points, &mut Stream::new(5, "choose", 0));
        out.sort_unstable();
        out
    }

    #[test]
    fn each_way_keeps_its_promise() {
        // K-means finds every cluster, however small.
        let clump = |i: &usize| usize::from(*i >= 60) + usize::from(*i >= 85);
        assert_eq!(chosen(Way::Kmeans, 3).iter().map(clump).collect::<Vec<_>>(), [0, 1, 2]);
        // Herding's mean is nearer to the class's mean than that of as many random rows.
        let points = normalised(&clumps().iter().map(Vec::as_slice).collect::<Vec<_>>());
        let mean = |rows: &[usize]| -> Vec<f32> {
            (0..2).map(|i| rows.iter().map(|r| points[*r][i]).sum::<f32>() / rows.len() as f32).collect()
        };
        let all = mean(&(0..points.len()).collect::<Vec<_>>());
        let off = |how: Way| distance(&mean(&chosen(how, 8)), &all);
        assert!(off(Way::Herding) < 0.2 * off(Way::Random), "{} {}", off(Way::Herding), off(Way::Random));
        for how in [Way::Kmeans, Way::Herding, Way::Reservoir, Way::Random] {
            let mut rows = chosen(how, 8);
            assert!(rows.len() <= 8 && rows.iter().all(|i| *i < 90), "{how:?}: {rows:?}");
            rows.dedup();
            assert_eq!(chosen(how, 100).len(), 90, "{how:?} keeps what there is");
            assert!(how == Way::Kmeans || rows.len() == 8, "{how:?}: {rows:?}");
        }
        // A reservoir keeps late rows as likely as early ones.
        let mut late = 0;
        for seed in 0..200 {
            late += reservoir(5, 50, &mut Stream::new(seed, "r", 0)).iter().filter(|i| **i >= 25).count();
        }
        assert!((400..600).contains(&late), "{late} of 1000 from the second half");
    }
}
