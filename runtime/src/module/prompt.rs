//! Learned input rows in force. They come before every token, so what they become in each layer does not
//! depend on the input: they run through the layers once, and what stays is their keys and values.

use super::payload::{Factor, Payload};
use super::prefix::Learned;
use super::{At, Module};
use crate::base::Base;
use crate::error::Result;
use crate::forward::{self, Row, Scratch};
use crate::kernels::{Kernels, MatrixRef};
use crate::kv::{Kv, KvType, Store};
use crate::threads::Threads;
use conpet_formats::pet::{Part, Place, Site, prompt::ROWS};
use conpet_formats::quant::QuantType;
use std::sync::{Arc, OnceLock};

#[derive(Debug, Clone)]
pub(super) struct Prompt {
    rows: Factor,
    /// Each layer's keys and values, those of a prefix first: `[pairs, kv_dim]` in bytes of F32.
    state: Arc<OnceLock<Vec<[Vec<u8>; 2]>>>,
}

impl Prompt {
    pub(super) fn load(p: &mut Payload<'_>, part: &Part) -> Result<Self> {
        let site = Site { layer: 0, place: Place::Embedding };
        let rows = p.factor(site, ROWS, &part.tensors(p.spec, Place::Embedding)[0].1)?;
        Ok(Self { rows, state: Arc::default() })
    }

    /// Runs the rows through `module` (this prompt's own), once; its sums are those of the kernels
    /// that ran first.
    pub(super) fn prepare(&self, (kernels, threads): (Kernels, &Threads), base: &Base, module: &Module) {
        self.state.get_or_init(|| {
            let (spec, n) = (&base.spec, self.rows.rows());
            let at = At { kernels, threads, map: &module.map, layer: 0 };
            let mut hidden = vec![0.0; n * spec.hidden];
            at.kernels.dequantize_row(self.rows.clone().in_rows_of(n * spec.hidden).matrix(at.map), 0, &mut hidden);
            let mut kv = Kv::new(0..spec.n_layer, spec.kv_dim(), KvType::F32);
            let bare = Module { prompt: None, ..module.clone() };
            let mut rows = [Row { tokens: n, kv: Some(&mut kv), module: Some(&bare) }];
            let mut s = Scratch::default();
            let (dev, all) = ((kernels, threads), 0..spec.n_layer);
            forward::layers(dev, base, all, &mut rows, &mut hidden, &mut s, &mut |_, _| {});
            (0..spec.n_layer).map(|l| pairs(&at, module, &kv, l)).collect()
        });
    }

    /// Positions that the rows take, once they have run.
    pub(super) fn positions(&self) -> usize {
        self.state.get().map_or(0, |_| self.rows.rows())
    }

    /// Keys and values of a layer, once the rows have run.
    pub(super) fn learned(&self, layer: usize, (head_dim, kv_heads): (usize, usize)) -> Option<Learned<'_>> {
        let state = &self.state.get()?[layer];
        let kv = state.each_ref().map(|data| {
            let rows = data.len() / 4 / head_dim;
            MatrixRef { ty: QuantType::F32, rows, cols: head_dim, data }
        });
        Some(Learned::new(kv, kv_heads))
    }
}

/// A prefix's pairs and then the rows' own, in bytes of F32.
fn pairs(at: &At<'_>, module: &Module, kv: &Kv, layer: usize) -> [Vec<u8>; 2] {
    let prefix = module.prefix.as_ref().and_then(|p| p.learned(at.map, layer, module.heads.1));
    std::array::from_fn(|which| {
        let mut numbers = Vec::new();
        if let Some(p) = &prefix {
            let m = p.kv[which];
            numbers.resize(m.rows * m.cols, 0.0);
            numbers.chunks_exact_mut(m.cols).enumerate().for_each(|(i, row)| at.kernels.dequantize_row(m, i, row));
        }
        if let Store::F32(v) = kv.layer(layer)[which] {
            numbers.extend_from_slice(v);
        }
        numbers.iter().flat_map(|v| v.to_le_bytes()).collect()
    })
}
