//! The order of query and key rows, and the positions of learned keys.
//!
//! llama.cpp's converter permutes the q and k rows of llama-arch bases, so that RoPE turns adjacent
//! pairs: within a head, row `2i + t` of the GGUF is row `t · d/2 + i` of Hugging Face (`permute` in
//! convert_hf_to_gguf.py). What a module adds to q or k needs the same. Families that turn halves
//! (Gemma, Qwen) keep the order.

use crate::model_spec::{ModelSpec, RopeKind};
use crate::pet::{Place, Site};
use crate::{Code, Error, Result};

/// An order of query and key rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// The base's own.
    Gguf,
    /// That of Hugging Face's checkpoints.
    HuggingFace,
}

/// Brings the rows of `data [out, cols]`, of a linear with `out` outputs, into another order.
///
/// # Errors
/// `E_UNSUPPORTED` where only part of a permuted head turns: no converter agrees on its order.
pub(super) fn reorder(spec: &ModelSpec, site: Site, data: Vec<f32>, cols: usize, to: Order) -> Result<Vec<f32>> {
    // All of a base's embeddings turn alike, those of layers that turn nothing too: the converter permutes them.
    let Some(rope) = spec.ropes.first().filter(|r| r.kind == RopeKind::Adjacent) else { return Ok(data) };
    if !matches!(site.place, Place::Q | Place::K) {
        return Ok(data);
    }
    let d = spec.head_dim;
    if rope.dim != d {
        return Err(Error::new(
            Code::Unsupported,
            format!("RoPE turns {} of a head's {d} values: the order of q and k rows is not known", rope.dim),
        )
        .hint("use a base whose heads turn whole, or an adapter without q_proj and k_proj"));
    }
    let mut out = vec![0.0; data.len()];
    for (from, row) in data.chunks_exact(cols).enumerate() {
        let (head, r) = (from / d, from % d);
        let at = match to {
            Order::Gguf => 2 * (r % (d / 2)) + r / (d / 2),
            Order::HuggingFace => (r % 2) * (d / 2) + r / 2,
        };
        out[(head * d + at) * cols..][..cols].copy_from_slice(row);
    }
    Ok(out)
}

/// Turns keys `[n, kv_dim]` of a layer, in the base's own order, by so many positions.
pub(super) fn turn(spec: &ModelSpec, layer: usize, keys: &mut [f32], positions: f64) {
    let Some(rope) = spec.rope(layer) else { return };
    let (d, half) = (spec.head_dim, rope.dim / 2);
    for head in keys.chunks_exact_mut(d) {
        for i in 0..half {
            let (x, y) = match rope.kind {
                RopeKind::Adjacent => (2 * i, 2 * i + 1),
                RopeKind::Halves => (i, i + half),
            };
            let (sin, cos) = (positions * rope.frequencies[i]).sin_cos();
            let (a, b) = (f64::from(head[x]), f64::from(head[y]));
            head[x] = (a * cos - b * sin) as f32;
            head[y] = (a * sin + b * cos) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model_spec::Rope;

    fn spec() -> ModelSpec {
        let base = crate::tiny::base(&crate::tiny::TinyConfig::default()).unwrap();
        ModelSpec::from_gguf(&crate::gguf::Gguf::parse(&base).unwrap()).unwrap()
    }

    #[test]
    fn a_known_permutation_and_back() {
        let mut spec = spec();
        (spec.head_dim, spec.ropes[0].dim, spec.n_kv_head) = (4, 4, 2);
        let [q, k, v] = [Place::Q, Place::K, Place::V].map(|place| Site { layer: 0, place });
        // numpy: arange(8).reshape(2, 2, 2).swapaxes(1, 2).ravel()
        let hf: Vec<f32> = (0..8).map(|v| v as f32).collect();
        let gguf = reorder(&spec, k, hf.clone(), 1, Order::Gguf).unwrap();
        assert_eq!(gguf, [0.0, 2.0, 1.0, 3.0, 4.0, 6.0, 5.0, 7.0]);
        assert_eq!(reorder(&spec, k, gguf, 1, Order::HuggingFace).unwrap(), hf);
        assert_eq!(reorder(&spec, v, hf.clone(), 1, Order::Gguf).unwrap(), hf);
        spec.ropes[0].dim = 2;
        assert_eq!(reorder(&spec, q, hf.clone(), 1, Order::Gguf).unwrap_err().code(), Code::Unsupported);
        spec.ropes[0].kind = RopeKind::Halves;
        assert_eq!(reorder(&spec, q, hf.clone(), 1, Order::Gguf).unwrap(), hf);
    }

    #[test]
    fn turning_there_and_back_is_nothing() {
        let mut spec = spec();
        spec.head_dim = 8;
        for kind in [RopeKind::Adjacent, RopeKind::Halves] {
            spec.ropes = vec![Rope::new(kind, 10_000.0, 8)];
            let keys: Vec<f32> = (0..16).map(|v| v as f32 / 7.0 - 1.0).collect();
            let mut turned = keys.clone();
            turn(&spec, 0, &mut turned, 5.0);
            assert!(turned != keys);
            turn(&spec, 0, &mut turned, -5.0);
            // Two roundings to f32 of numbers up to 1.5.
            turned.iter().zip(&keys).for_each(|(a, b)| assert!((a - b).abs() < 1e-6));
        }
    }
}
