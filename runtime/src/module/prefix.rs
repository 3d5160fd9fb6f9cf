//! Learned keys and values in force: attention reads them before the sequence's own.

use super::act::Table;
use super::payload::{Factor, Payload};
use crate::error::{Code, Error, Result};
use crate::kernels::MatrixRef;
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::{Part, Place, Site, prefix::PAIRS};

/// Learned keys and values of a layer; row `j · kv heads + head` of each is one head's, `[head_dim]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Learned<'m> {
    /// Pairs.
    pub(crate) n: usize,
    /// Keys (rotated where they have a position), values.
    pub(crate) kv: [MatrixRef<'m>; 2],
}

impl<'m> Learned<'m> {
    pub(super) fn new(kv: [MatrixRef<'m>; 2], kv_heads: usize) -> Self {
        Self { n: kv[0].rows / kv_heads, kv }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Prefix {
    sites: Table<Factor>,
}

impl Prefix {
    pub(super) fn load(p: &mut Payload<'_>, (part, n): (&Part, usize), sites: &[Site]) -> Result<Self> {
        let mut out = Self { sites: Table::new(p.spec.n_layer) };
        let hd = p.spec.head_dim;
        for site in sites.iter().filter(|s| part.acts(p.spec.n_layer, **s)) {
            out.sites.set(*site, p.factor(*site, PAIRS, &[n, p.spec.kv_dim()])?.in_rows_of(hd));
        }
        for layer in 0..p.spec.n_layer {
            let [k, v] = [Place::K, Place::V].map(|place| out.sites.get(layer, place).is_some());
            if k != v {
                return Err(Error::new(
                    Code::Missing,
                    format!("layer {layer} has learned keys or values, but not both"),
                ));
            }
        }
        Ok(out)
    }

    pub(super) fn learned<'m>(&'m self, map: &'m Mapped, layer: usize, kv_heads: usize) -> Option<Learned<'m>> {
        let get = |place| self.sites.get(layer, place).map(|f| f.matrix(map));
        Some(Learned::new([get(Place::K)?, get(Place::V)?], kv_heads))
    }
}
