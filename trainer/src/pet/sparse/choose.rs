//! Chooses the weights that a sparse delta trains (APET, Su et al. 2023): a given number among all its sites
//! together.

use crate::pet::kind::{Choice, Indices};
use crate::pet::probe::Probe;
use crate::rng::Stream;
use conpet_formats::pet::Site;
use conpet_formats::pet::sparse::{NAMES, Rule, Sparse};
use conpet_formats::{Code, Error, Result};
use conpet_runtime::base::{Base, Linear};
use conpet_runtime::kernels::Kernels;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The positions that a spec asks for.
///
/// # Errors
/// If there are fewer weights than positions, or the gradients that choose them cannot be computed.
pub(super) fn positions(spec: &Sparse, choice: &Choice<'_>) -> Result<Indices> {
    let Choice { base, sites, named, fisher } = choice;
    // Without sites only the head is trained.
    if sites.is_empty() {
        return Ok(Indices::new());
    }
    let total: usize = sites.iter().map(|s| size(base, *s)).sum();
    if spec.n > total {
        return Err(Error::new(Code::Value, format!("a sparse delta of {} positions, its sites have {total}", spec.n))
            .hint("lower n (or --params), or give it more sites"));
    }
    Ok(match spec.rule {
        Rule::Random => random(base, sites, spec.n, *named),
        Rule::Magnitude => magnitude(base, sites, spec.n),
        Rule::Fisher => {
            let sums = sites.iter().map(|s| (*s, vec![0.0; size(base, *s)])).collect();
            let probe = Arc::new(Probe { sums: Mutex::new(sums) });
            fisher(sites, &probe)?;
            let sums = probe.sums.lock().unwrap_or_else(PoisonError::into_inner);
            by_score(sites, spec.n, &sums)
        }
    })
}

/// Computes the scores of a site's weights; the largest are chosen.
type Scores<'a> = &'a dyn Fn(Site, &mut Vec<f32>);

/// `n` positions drawn without replacement, each equally likely.
fn random(base: &Base, sites: &[Site], n: usize, (seed, name): (u64, &str)) -> Indices {
    let sizes: Vec<usize> = sites.iter().map(|s| size(base, *s)).collect();
    let total: usize = sizes.iter().sum();
    let n = n.min(total);
    let mut rng = Stream::new(seed, &format!("{name}/choose"), 0);
    // Duplicates are drawn again; if more than half are wanted, those left out are drawn instead.
    let few = n.min(total - n);
    let mut drawn: Vec<usize> = Vec::new();
    while drawn.len() < few {
        drawn.extend((drawn.len()..few).map(|_| rng.below(total)));
        drawn.sort_unstable();
        drawn.dedup();
    }
    if few < n {
        let mut left = drawn.into_iter().peekable();
        drawn = (0..total).filter(|i| left.next_if_eq(i).is_none()).collect();
    }
    let (mut out, mut rest, mut first) = (Indices::new(), &drawn[..], 0);
    for (site, size) in sites.iter().zip(sizes) {
        let (mine, others) = rest.split_at(rest.partition_point(|i| *i < first + size));
        put(&mut out, *site, mine.iter().map(|i| (i - first) as i32).collect());
        (rest, first) = (others, first + size);
    }
    out
}

/// The `n` weights of largest magnitude.
fn magnitude(base: &Base, sites: &[Site], n: usize) -> Indices {
    let kernels = Kernels::detect();
    largest(sites, n, &|site, out| {
        let w = base.layer(site.layer).linear(Linear::ALL[site.place as usize]);
        out.resize(w.rows * w.cols, 0.0);
        out.chunks_exact_mut(w.cols).enumerate().for_each(|(i, row)| kernels.dequantize_row(w, i, row));
        out.iter_mut().for_each(|v| *v = v.abs());
    })
}

/// The `n` weights of largest score; of equal ones the first.
fn by_score(sites: &[Site], n: usize, scores: &BTreeMap<Site, Vec<f32>>) -> Indices {
    largest(sites, n, &|site, out| {
        out.clear();
        out.extend_from_slice(&scores[&site]);
    })
}

/// Scores are not negative, so their bits sort as they do. Two passes over the sites, with one site in memory
/// at a time, find the score of the last chosen weight.
fn largest(sites: &[Site], n: usize, scores: Scores<'_>) -> Indices {
    const SHIFT: u32 = 12;
    let mut counts = vec![0usize; 1 << (32 - SHIFT)];
    let mut v = Vec::new();
    for site in sites {
        scores(*site, &mut v);
        v.iter().for_each(|s| counts[(s.to_bits() >> SHIFT) as usize] += 1);
    }
    // All weights in the bins above `edge` are chosen, and some in `edge` itself.
    let (mut edge, mut above) = (counts.len() - 1, 0);
    while edge > 0 && above + counts[edge] < n {
        above += counts[edge];
        edge -= 1;
    }
    let (mut chosen, mut border) = (BTreeMap::<Site, Vec<i32>>::new(), Vec::new());
    for site in sites {
        scores(*site, &mut v);
        let mine = chosen.entry(*site).or_default();
        for (i, s) in v.iter().enumerate() {
            match ((s.to_bits() >> SHIFT) as usize).cmp(&edge) {
                std::cmp::Ordering::Greater => mine.push(i as i32),
                std::cmp::Ordering::Equal => border.push((s.to_bits(), *site, i as i32)),
                std::cmp::Ordering::Less => {}
            }
        }
    }
    border.sort_by(|a, b| b.0.cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    for (_, site, i) in border.into_iter().take(n.saturating_sub(above)) {
        chosen.entry(site).or_default().push(i);
    }
    let mut out = Indices::new();
    for (site, mut index) in chosen {
        index.sort_unstable();
        put(&mut out, site, index);
    }
    out
}

fn size(base: &Base, site: Site) -> usize {
    let (out, input) = site.place.shape(&base.spec);
    out * input
}

fn put(out: &mut Indices, site: Site, index: Vec<i32>) {
    if !index.is_empty() {
        out.insert(format!("{site}.{}", NAMES[0]), Arc::new(index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use conpet_formats::pet::Place;

    fn sites() -> Vec<Site> {
        [Place::K, Place::Down].map(|place| Site { layer: 3, place }).to_vec()
    }

    fn count(i: &Indices) -> usize {
        i.values().map(|v| v.len()).sum()
    }

    #[test]
    fn random_positions_are_distinct_and_as_many_as_asked() {
        let e = crate::decoder::tests::engine();
        let total: usize = sites().iter().map(|s| size(&e.base, *s)).sum();
        for n in [1, 100, total / 2, total - 3, total] {
            let i = random(&e.base, &sites(), n, (1, "x"));
            assert_eq!(count(&i), n);
            assert!(i.values().all(|v| v.windows(2).all(|w| w[0] < w[1])));
        }
        let a = random(&e.base, &sites(), 100, (1, "x"));
        assert_eq!(a, random(&e.base, &sites(), 100, (1, "x")));
        assert_ne!(a, random(&e.base, &sites(), 100, (2, "x")));
    }

    #[test]
    fn magnitude_takes_the_largest_of_all_sites_together() {
        let e = crate::decoder::tests::engine();
        let mut all = Vec::new();
        for s in sites() {
            let w = e.base.layer(s.layer).linear(Linear::ALL[s.place as usize]);
            let mut v = vec![0.0; w.rows * w.cols];
            v.chunks_exact_mut(w.cols).enumerate().for_each(|(i, r)| e.cpu().kernels.dequantize_row(w, i, r));
            all.extend(v.iter().enumerate().map(|(i, v)| (v.abs(), s, i as i32)));
        }
        all.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        for n in [1, 37, 500] {
            let got = magnitude(&e.base, &sites(), n);
            let mut want: Vec<(Site, i32)> = all[..n].iter().map(|x| (x.1, x.2)).collect();
            want.sort_unstable();
            let name = |s: Site| format!("{s}.{}", NAMES[0]);
            let got = sites().into_iter().flat_map(|s| {
                got.get(&name(s)).map(|v| v.to_vec()).unwrap_or_default().into_iter().map(move |i| (s, i))
            });
            assert_eq!(got.collect::<Vec<_>>(), want, "{n}");
        }
    }
}
