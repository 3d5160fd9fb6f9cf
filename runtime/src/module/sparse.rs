//! A sparse delta in force: its positions are walked once for all tokens of a batch.

use super::act::{Act, At, Table};
use super::payload::{Factor, Payload};
use crate::error::{Code, Error, Result};
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::{Part, Place, Site, Sparse as Spec, sparse};
use std::ops::Range;

/// Positions taken apart at a time.
const BLOCK: usize = 256;

#[derive(Debug)]
pub(super) struct Sparse {
    sites: Table<Delta>,
}

#[derive(Debug)]
struct Delta {
    /// `[out, in]`.
    shape: (usize, usize),
    /// Where the positions lie, four bytes each.
    index: Range<usize>,
    values: Factor,
}

fn position(bytes: &[u8]) -> i32 {
    i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl Sparse {
    pub(super) fn load(p: &mut Payload<'_>, map: &Mapped, (part, spec): (&Part, Spec), sites: &[Site]) -> Result<Self> {
        let mut out = Self { sites: Table::new(p.spec.n_layer) };
        let mut n = 0;
        let [index, values] = sparse::NAMES;
        for site in sites.iter().filter(|s| part.acts(p.spec.n_layer, **s)) {
            if !p.has(*site, index) && !p.has(*site, values) {
                // Nothing was chosen here; the sum below tells whether something is missing.
                continue;
            }
            let (shape, index) = (site.place.shape(p.spec), p.integers(*site, index)?);
            let k = index.len() / 4;
            let all = map[index.clone()].chunks_exact(4).map(position);
            sparse::check_index(all, shape.0, shape.1)
                .map_err(|e| e.in_section(format!("{site}.{}", sparse::NAMES[0])))?;
            let values = p.factor(*site, values, &[k])?;
            out.sites.set(*site, Delta { shape, index, values });
            n += k;
        }
        if n != spec.n {
            return Err(Error::new(
                Code::Shape,
                format!("the sparse delta has {n} positions, but its spec says {}", spec.n),
            )
            .hint("a module is refused rather than applied in part"));
        }
        Ok(out)
    }
}

impl Act for Sparse {
    fn has(&self, layer: usize, place: Place) -> bool {
        self.sites.get(layer, place).is_some()
    }

    fn act(&self, at: &At<'_>, place: Place, x: &[f32], y: &mut [f32], _work: &mut [f32]) {
        let Some(d) = self.sites.get(at.layer, place) else { return };
        let (out, input) = d.shape;
        let index = &at.map[d.index.clone()];
        let k = index.len() / 4;
        let part = |first: usize, y: &mut [f32]| {
            let (mut places, mut values) = ([(0, 0); BLOCK], [0.0; BLOCK]);
            for start in (0..k).step_by(BLOCK) {
                let len = BLOCK.min(k - start);
                for (p, bytes) in places.iter_mut().zip(index[4 * start..4 * (start + len)].chunks_exact(4)) {
                    let at = position(bytes) as usize;
                    *p = (at / input, at % input);
                }
                at.kernels().dequantize_row(d.values.part(at.map, start..start + len), 0, &mut values[..len]);
                for (t, (y, x)) in y.chunks_exact_mut(out).zip(x[first * input..].chunks_exact(input)).enumerate() {
                    let w = at.weight.of(first + t);
                    places[..len].iter().zip(&values).for_each(|((row, col), v)| y[*row] += w * v * x[*col]);
                }
            }
        };
        if y.len() / out * k < 1 << 14 { part(0, y) } else { at.cpu.threads.split_mut(y, out, part) }
    }
}
