//! The KV cache of one sequence over a range of layers.
//!
//! Trunk and branch each have their own, so that all modules share the trunk's. It grows with
//! use, in steps of 64 tokens, never to the context limit in advance.

use crate::kernels::{Kernels, MatrixRef};
use conpet_formats::quant::{QuantType, q8_0};
use half::f16;
use std::ops::Range;

/// Tokens by which a cache grows.
const STEP: usize = 64;
/// Values in a Q8_0 block.
const BLOCK: usize = QuantType::Q8_0.block_len();
/// Bytes of a Q8_0 block.
const BLOCK_BYTES: usize = QuantType::Q8_0.block_bytes();

/// The type that keys and values are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// Half precision: the default.
    #[default]
    F16,
    /// Single precision: for parity tests.
    F32,
    /// 32 values as bytes with one scale: a little over half the memory of half precision.
    Q8_0,
}

impl KvType {
    /// Parses `f16`, `f32` or `q8_0`, as llama.cpp's `--cache-type-k`.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "f16" => Some(Self::F16),
            "f32" => Some(Self::F32),
            "q8_0" => Some(Self::Q8_0),
            _ => None,
        }
    }

    /// Whether a head's keys and values fill whole blocks.
    pub fn fits(self, head_dim: usize) -> bool {
        self != Self::Q8_0 || head_dim.is_multiple_of(BLOCK)
    }
}

/// Keys and values of a range of layers, `[tokens, kv_dim]` each.
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
    Q8_0(Vec<u8>),
}

impl Kv {
    /// An empty cache for `layers`.
    ///
    /// # Panics
    /// If `ty` does not fit `kv_dim`.
    pub fn new(layers: Range<usize>, kv_dim: usize, ty: KvType) -> Self {
        let empty = || match ty {
            KvType::F16 => Store::F16(Vec::new()),
            KvType::F32 => Store::F32(Vec::new()),
            KvType::Q8_0 => Store::Q8_0(Vec::new()),
        };
        assert!(ty.fits(kv_dim), "{kv_dim} keys and values are not whole blocks");
        Self { data: layers.clone().map(|_| [empty(), empty()]).collect(), layers, kv_dim }
    }

    /// Tokens cached (of the first layer; all layers agree between forward passes).
    pub fn len(&self) -> usize {
        self.data.first().map_or(0, |[k, _]| k.numbers() / self.kv_dim)
    }

    /// Tokens cached of one layer.
    pub(crate) fn len_at(&self, layer: usize) -> usize {
        self.data[layer - self.layers.start][0].numbers() / self.kv_dim
    }

    /// True if no token is cached.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all tokens from `len` on; memory is kept for reuse.
    pub fn truncate(&mut self, len: usize) {
        for s in self.data.iter_mut().flatten() {
            match s {
                Store::F16(v) => v.truncate(len * self.kv_dim),
                Store::F32(v) => v.truncate(len * self.kv_dim),
                Store::Q8_0(v) => v.truncate(block_bytes(len * self.kv_dim)),
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
                Store::Q8_0(v) => v.capacity(),
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
            Self::Q8_0(v) => v.len() / BLOCK_BYTES * BLOCK,
        }
    }

    /// Loads the values `range` as `f32`.
    pub(crate) fn load(&self, kernels: Kernels, range: Range<usize>, out: &mut [f32]) {
        match self {
            Self::F16(v) => kernels.widen(&v[range], out),
            Self::F32(v) => out.copy_from_slice(&v[range]),
            Self::Q8_0(v) => {
                let data = &v[block_bytes(range.start)..block_bytes(range.end)];
                kernels.dequantize_row(MatrixRef { ty: QuantType::Q8_0, rows: 1, cols: out.len(), data }, 0, out);
            }
        }
    }

    fn push(&mut self, new: &[f32], step: usize) {
        let whole = new.len().next_multiple_of(step);
        match self {
            Self::F16(v) => {
                reserve(v, new.len(), whole);
                v.extend(new.iter().map(|x| f16::from_f32(*x)));
            }
            Self::F32(v) => {
                reserve(v, new.len(), whole);
                v.extend_from_slice(new);
            }
            Self::Q8_0(v) => {
                reserve(v, block_bytes(new.len()), block_bytes(whole));
                new.chunks_exact(BLOCK).for_each(|x| q8_0::quantize(x, v));
            }
        }
    }
}

/// Bytes of this many values in blocks.
fn block_bytes(numbers: usize) -> usize {
    numbers / BLOCK * BLOCK_BYTES
}

/// Makes room for `wanted` more, in multiples of `step`: doubling would cost up to twice the memory of a long
/// context.
fn reserve<T>(v: &mut Vec<T>, wanted: usize, step: usize) {
    if v.capacity() - v.len() < wanted {
        v.reserve_exact(step);
    }
}
