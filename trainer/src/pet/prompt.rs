//! Learned rows before the input, in training: they run through the layers with every sequence.

use super::kind::Trainable;
use super::plan::{Layout, Plan};
use crate::nn::attention::Ragged;
use crate::rng::Stream;
use candle_core::{Result, Tensor};
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::prompt::{Prompt, ROWS};
use conpet_formats::pet::{Place, Site};
use conpet_runtime::base::Base;
use conpet_runtime::kernels::Kernels;
use std::collections::BTreeMap;

impl Trainable for Prompt {
    /// Embeddings of tokens drawn at random (Lester et al. 2021).
    fn start(&self, base: &Base, _name: &str, shape: &[usize], mut rng: Stream) -> Vec<f32> {
        let mut rows = vec![0.0; shape.iter().product()];
        for row in rows.chunks_exact_mut(shape[1]) {
            let token = rng.below(base.spec.vocab);
            Kernels::detect().dequantize_row(base.embedding(), token, row);
            row.iter_mut().for_each(|v| *v *= base.spec.embedding.scale);
        }
        rows
    }

    /// Enters nothing: no layer treats the rows specially.
    fn enter(&self, _plan: &mut Plan, _layout: &mut Layout<'_>) {}
}

/// The rows `[n, hidden]` among a module's tensors.
pub(super) fn rows(tensors: &BTreeMap<String, Tensor>) -> Option<&Tensor> {
    tensors.get(&format!("{}.{ROWS}", Site { layer: 0, place: Place::Embedding }))
}

/// A batch with learned rows before each of its sequences.
pub(crate) struct WithRows {
    /// States `[rows and tokens, hidden]`.
    pub(crate) hidden: Tensor,
    /// The sequences, lengthened by the rows.
    pub(crate) batch: Ragged,
    /// Indices (U32) of the states that belong to tokens.
    pub(crate) own: Tensor,
}

impl WithRows {
    /// Puts `rows [n, hidden]` before every sequence of `hidden [tokens, hidden]`.
    ///
    /// # Errors
    /// If they cannot be joined.
    pub(crate) fn new(spec: &ModelSpec, rows: &Tensor, hidden: &Tensor, batch: &Ragged) -> Result<Self> {
        let (n, mut all, mut own, mut lens) = (rows.dims()[0], Vec::new(), Vec::new(), Vec::new());
        for row in batch.rows() {
            all.extend((0..n).chain(row.clone().map(|t| n + t)).map(|i| i as u32));
            own.extend((all.len() - row.len()..all.len()).map(|i| i as u32));
            lens.push(n + row.len());
        }
        let order = |v: Vec<u32>| Tensor::new(v, hidden.device());
        Ok(Self {
            hidden: Tensor::cat(&[rows, hidden], 0)?.index_select(&order(all)?, 0)?,
            batch: Ragged::new(spec, &lens).pinned(n),
            own: order(own)?,
        })
    }
}
