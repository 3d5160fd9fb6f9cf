//! Learned input rows in force. They come before every token, so what they become in each layer does not
//! depend on the input: the decoder runs them through the layers once, and what stays is their keys and values.

use super::payload::{Factor, Payload};
use super::prefix::Learned;
use crate::error::Result;
use crate::kernels::{Kernels, MatrixRef};
use crate::kv::{Kv, Store};
use conpet_formats::mmap::Mapped;
use conpet_formats::pet::{Part, Place, Site, prompt::ROWS};
use conpet_formats::quant::QuantType;
use std::sync::{Arc, OnceLock};

#[derive(Debug, Clone)]
pub(super) struct PromptRows {
    rows: Factor,
    /// Each layer's keys and values, those of a prefix first: `[pairs, kv_dim]` in bytes of F32.
    state: Arc<OnceLock<Vec<[Vec<u8>; 2]>>>,
}

impl PromptRows {
    pub(super) fn load(p: &mut Payload<'_>, part: &Part) -> Result<Self> {
        let site = Site { layer: 0, place: Place::Embedding };
        let rows = p.factor(site, ROWS, &part.tensors(p.spec, Place::Embedding)[0].1)?;
        Ok(Self { rows, state: Arc::default() })
    }

    /// Keeps what `run` makes of the rows `[rows, hidden]`, once. `prefix(layer)` are the learned pairs
    /// that come before them.
    pub(super) fn prepare<'m>(
        &self,
        map: &'m Mapped,
        kernels: Kernels,
        (n_layer, hidden): (usize, usize),
        prefix: impl Fn(usize) -> Option<Learned<'m>>,
        run: impl FnOnce(usize, &mut [f32]) -> Kv,
    ) {
        self.state.get_or_init(|| {
            let n = self.rows.rows();
            let mut states = vec![0.0; n * hidden];
            kernels.dequantize_row(self.rows.clone().in_rows_of(n * hidden).matrix(map), 0, &mut states);
            let kv = run(n, &mut states);
            (0..n_layer).map(|l| pairs(kernels, prefix(l).as_ref(), &kv, l)).collect()
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
fn pairs(kernels: Kernels, prefix: Option<&Learned<'_>>, kv: &Kv, layer: usize) -> [Vec<u8>; 2] {
    std::array::from_fn(|which| {
        let mut values = Vec::new();
        if let Some(p) = prefix {
            let m = p.kv[which];
            values.resize(m.rows * m.cols, 0.0);
            values.chunks_exact_mut(m.cols).enumerate().for_each(|(i, row)| kernels.dequantize_row(m, i, row));
        }
        if let Store::F32(v) = kv.layer(layer)[which] {
            values.extend_from_slice(v);
        }
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    })
}
