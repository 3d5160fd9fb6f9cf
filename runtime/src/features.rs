//! Pools token states into the vectors that selectors and heads read.

use crate::base::Base;
use crate::kernels::Kernels;
use crate::prompt::Prompt;
use conpet_formats::feature::{FeatureSpec, Reduce, StateNorm};
use std::ops::Range;

/// Gathers one feature for each sequence of a batch while its layers run.
///
/// Call [`Pooler::observe`] with the states before the first layer that is run and after each layer.
#[derive(Debug)]
pub struct Pooler<'a> {
    spec: &'a FeatureSpec,
    base: &'a Base,
    kernels: Kernels,
    /// For each sequence and each part, its token range within the batch.
    ranges: Vec<Range<usize>>,
    /// The features, `[sequences, parts * hidden]`.
    out: Vec<f32>,
    norm: Vec<f32>,
}

impl<'a> Pooler<'a> {
    /// A pooler for a batch of prompts that lie one after another.
    pub fn new<'p>(
        spec: &'a FeatureSpec,
        base: &'a Base,
        kernels: Kernels,
        prompts: impl Iterator<Item = &'p Prompt>,
    ) -> Self {
        let (mut ranges, mut start) = (Vec::new(), 0);
        for p in prompts {
            for part in &spec.parts {
                let r = part.pool.tokens(&p.text, &p.offsets);
                ranges.push(start + r.start..start + r.end);
            }
            start += p.tokens.len();
        }
        let n = ranges.len() / spec.parts.len().max(1);
        Self { out: vec![0.0; n * spec.dim(base.spec.hidden)], norm: Vec::new(), spec, base, kernels, ranges }
    }

    /// Pools the parts that read the states `hidden [tokens, hidden]` after `layer` layers.
    pub fn observe(&mut self, layer: usize, hidden: &[f32]) {
        let (h, parts) = (self.base.spec.hidden, self.spec.parts.len());
        if self.spec.parts.iter().all(|p| p.layer as usize != layer) {
            return;
        }
        self.norm.resize(h, 0.0);
        for (i, range) in self.ranges.iter().enumerate() {
            if self.spec.parts[i % parts].layer as usize != layer || range.is_empty() {
                continue;
            }
            let out = &mut self.out[i * h..(i + 1) * h];
            let weight = 1.0 / range.len() as f32;
            for t in range.clone() {
                let state = &hidden[t * h..(t + 1) * h];
                match self.spec.norm {
                    StateNorm::None => self.norm.copy_from_slice(state),
                    StateNorm::Rms => {
                        self.norm.copy_from_slice(state);
                        self.kernels.rms_normalise(&mut self.norm);
                    }
                    StateNorm::Output => match self.base.output_norm() {
                        Some(norm) => norm.row(self.kernels, state, &mut self.norm),
                        None => self.norm.copy_from_slice(state),
                    },
                }
                match self.spec.parts[i % parts].pool.reduce() {
                    Reduce::Mean => self.kernels.axpy_f32(out, weight, &self.norm),
                    _ if t == range.start => out.copy_from_slice(&self.norm),
                    reduce => out.iter_mut().zip(&self.norm).for_each(|(o, v)| {
                        if reduce.prefers(*v, *o) {
                            *o = *v;
                        }
                    }),
                }
            }
        }
    }

    /// The features `[sequences, parts * hidden]`.
    pub fn finish(self) -> Vec<f32> {
        self.out
    }
}
