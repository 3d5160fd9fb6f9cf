//! The KV cache of one sequence over a span of layers.
//!
//! Trunk and branch each have their own, so that all modules share the trunk's. It grows with
//! use, in steps of 64 tokens, never to the context limit in advance.

use half::f16;
use std::ops::Range;

/// Tokens by which a cache grows.
const STEP: usize = 64;

/// What keys and values are stored as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision: the default.
    #[default]
    F16,
    /// Single precision: for parity tests.
    F32,
}

impl KvType {
    /// Parses `f16` or `f32`, as llama.cpp's `--cache-type-k`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "f16" => Some(Self::F16),
            "f32" => Some(Self::F32),
            _ => None,
        }
    }
}

/// Keys and values of the layers `layers`, `[tokens, kv_dim]` each.
#[derive(Debug, Clone)]
pub struct Kv {
    layers: Range<usize>,
    kv_dim: usize,
    data: Vec<[Store; 2]>,
}

#[derive(Debug, Clone)]
pub(crate) enum Store {
    F16(Vec<f16>),
    F32(Vec<f32>),
}

impl Kv {
    /// An empty cache for `layers`.
    pub fn new(layers: Range<usize>, kv_dim: usize, ty: KvType) -> Self {
        let empty = || match ty {
            KvType::F16 => Store::F16(Vec::new()),
            KvType::F32 => Store::F32(Vec::new()),
        };
        Self { data: layers.clone().map(|_| [empty(), empty()]).collect(), layers, kv_dim }
    }

    /// Tokens cached (of the first layer; all layers agree between forward passes).
    pub fn len(&self) -> usize {
        self.data.first().map_or(0, |[k, _]| k.numbers() / self.kv_dim)
    }

    /// True before the first token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens from `len` on; memory is kept for reuse.
    pub fn truncate(&mut self, len: usize) {
        for s in self.data.iter_mut().flatten() {
            match s {
                Store::F16(v) => v.truncate(len * self.kv_dim),
                Store::F32(v) => v.truncate(len * self.kv_dim),
            }
        }
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.data
            .iter()
            .flatten()
            .map(|s| match s {
                Store::F16(v) => v.capacity() * 2,
                Store::F32(v) => v.capacity() * 4,
            })
            .sum()
    }

    /// Appends keys and values `[tokens, kv_dim]` of one layer.
    pub(crate) fn push(&mut self, layer: usize, k: &[f32], v: &[f32]) {
        let at = layer - self.layers.start;
        for (store, new) in self.data[at].iter_mut().zip([k, v]) {
            store.push(new, STEP * self.kv_dim);
        }
    }

    /// Keys and values of one layer.
    pub(crate) fn layer(&self, layer: usize) -> [&Store; 2] {
        let [k, v] = &self.data[layer - self.layers.start];
        [k, v]
    }
}

impl Store {
    fn numbers(&self) -> usize {
        match self {
            Self::F16(v) => v.len(),
            Self::F32(v) => v.len(),
        }
    }

    fn push(&mut self, new: &[f32], step: usize) {
        // Exact growth in steps: doubling would cost up to twice the memory of a long context.
        match self {
            Self::F16(v) => {
                if v.capacity() - v.len() < new.len() {
                    v.reserve_exact(new.len().next_multiple_of(step));
                }
                v.extend(new.iter().map(|x| f16::from_f32(*x)));
            }
            Self::F32(v) => {
                if v.capacity() - v.len() < new.len() {
                    v.reserve_exact(new.len().next_multiple_of(step));
                }
                v.extend_from_slice(new);
            }
        }
    }
}
