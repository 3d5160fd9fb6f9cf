//! A hidden layer between a feature and a selector's linear scores: `h = max(0, W x + b)`.
//!
//! Two kinds of payload lie beside a selector's weights, whose width is then the layer's:
//!
//! * learned (`mlp`): [`WEIGHT`] `[size, dim]` and [`BIAS`] `[size]`;
//! * random (`ridge` with random features; McDonnell et al. 2023, "RanPAC"; Rahimi & Recht 2008):
//!   [`SEED`] I32 `[3]` (low and high half of the seed, and the size), [`SHIFT`] and [`SCALE`] F32 `[dim]`.
//!   The layer is not stored but drawn again from its seed, see [`Hidden::random`].

use crate::mmap::Mapped;
use crate::tensors::{Tensors, TensorsWriter};
use crate::{Code, Error, Result};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Name of the learned weight.
pub const WEIGHT: &str = "hidden.weight";
/// Name of the learned bias.
pub const BIAS: &str = "hidden.bias";
/// Name of the seed and size of a random layer.
pub const SEED: &str = "random.seed";
/// Name of what is subtracted from a feature before a random layer.
pub const SHIFT: &str = "random.shift";
/// Name of what the difference is multiplied by.
pub const SCALE: &str = "random.scale";
/// Most units of a layer; that many on a feature of 2,048 values take 128 MiB.
pub const MOST: usize = 16_384;
/// Most weights of a random layer, 256 MiB of them: a few hundred bytes must not ask for more.
pub const RANDOM_MOST: usize = 1 << 26;

/// The layer, with its parameters in memory.
#[derive(Debug, Clone)]
pub struct Hidden {
    /// `[size, dim]`, F32 little-endian.
    pub weight: Mapped,
    /// `[size]`.
    pub bias: Vec<f32>,
    /// Length of a feature.
    pub dim: usize,
}

impl Hidden {
    /// A layer with these parameters, `weight [size, dim]`.
    ///
    /// # Panics
    /// If the lengths do not fit.
    pub fn new(weight: &[f32], bias: Vec<f32>) -> Self {
        assert!(!bias.is_empty() && weight.len().is_multiple_of(bias.len()));
        let dim = weight.len() / bias.len();
        Self { weight: Mapped::from_vec(weight.iter().flat_map(|v| v.to_le_bytes()).collect()), bias, dim }
    }

    /// A random layer on `(x - shift) · scale`: weights uniform with variance `1 / dim`, biases uniform
    /// in [-1, 1], so that on standardised features a unit is on for about half of them.
    ///
    /// Draws are 24-bit integers of ChaCha8 scaled by exact operations: the same on every machine.
    pub fn random(seed: u64, size: usize, shift: &[f32], scale: &[f32]) -> Self {
        let dim = shift.len();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut uniform = || (rng.next_u32() >> 8) as f32 / (1u32 << 23) as f32 - 1.0;
        let bound = (3.0 / dim as f32).sqrt();
        let mut weight = Vec::with_capacity(size * dim);
        let mut bias = Vec::with_capacity(size);
        for _ in 0..size {
            let mut at_shift = 0.0f64;
            for (shift, scale) in shift.iter().zip(scale) {
                let w = uniform() * bound * scale;
                at_shift += f64::from(w) * f64::from(*shift);
                weight.push(w);
            }
            bias.push(uniform() - at_shift as f32);
        }
        Self::new(&weight, bias)
    }

    /// Finds the layer in a selector's payload; `None` if it has none.
    ///
    /// # Errors
    /// If tensors are missing or do not fit features of `dim` values.
    pub fn load(payload: &[u8], dim: usize) -> Result<Option<Self>> {
        let tensors = Tensors::parse(payload)?;
        let need =
            |name: &str| tensors.get(name).ok_or_else(|| Error::new(Code::Missing, format!("no tensor {name:?}")));
        let misfit =
            |what: String| Err(Error::new(Code::Shape, format!("a hidden layer of {what} on features of {dim}")));
        if let Some((seed, size)) = random(&tensors)? {
            let (shift, scale) = (need(SHIFT)?.to_f32(), need(SCALE)?.to_f32());
            if shift.len() != dim || scale.len() != dim || size == 0 || size > MOST {
                return misfit(format!("{size} units (1 to {MOST}), shift {} and scale {}", shift.len(), scale.len()));
            }
            if size * dim > RANDOM_MOST {
                return Err(Error::new(
                    Code::Cap,
                    format!("a random layer of {size} x {dim} weights, cap {RANDOM_MOST}"),
                )
                .hint("fewer --random-features, or a feature of fewer parts"));
            }
            return Ok(Some(Self::random(seed, size, &shift, &scale)));
        }
        let Some(weight) = tensors.get(WEIGHT) else { return Ok(None) };
        let bias = need(BIAS)?.to_f32();
        if bias.is_empty() || bias.len() > MOST || weight.shape != [bias.len(), dim] {
            return misfit(format!("weight {:?} and bias [{}]", weight.shape, bias.len()));
        }
        Ok(Some(Self::new(&weight.to_f32(), bias)))
    }

    /// Adds the description of a random layer to a payload.
    ///
    /// # Errors
    /// If a tensor cannot be written.
    pub fn write_random(w: &mut TensorsWriter<'_>, seed: u64, size: usize, shift: &[f32], scale: &[f32]) -> Result<()> {
        w.add_i32(SEED, &[3], &[seed as u32 as i32, (seed >> 32) as i32, size as i32])?;
        w.add_f32(SHIFT, &[shift.len()], shift)?;
        w.add_f32(SCALE, &[scale.len()], scale)
    }

    /// Number of units.
    pub fn size(&self) -> usize {
        self.bias.len()
    }

    /// Completes the layer, in place, on products `W x` `[n, size]`: `max(0, · + b)`.
    pub fn activate(&self, products: &mut [f32]) {
        for row in products.chunks_exact_mut(self.size()) {
            row.iter_mut().zip(&self.bias).for_each(|(v, b)| *v = (*v + b).max(0.0));
        }
    }
}

/// Seed of the random layer of a payload; 0 if it has none.
///
/// # Errors
/// If the payload is damaged.
pub fn seed(payload: &[u8]) -> Result<u64> {
    Ok(random(&Tensors::parse(payload)?)?.map_or(0, |r| r.0))
}

/// Seed and size of a random layer.
fn random(tensors: &Tensors<'_>) -> Result<Option<(u64, usize)>> {
    let Some(t) = tensors.get(SEED) else { return Ok(None) };
    let parts = t.to_i32();
    let [low, high, size] = parts.as_slice() else {
        return Err(Error::new(Code::Shape, format!("{SEED:?} holds {} values, not 3", parts.len())));
    };
    Ok(Some((u64::from(*low as u32) | u64::from(*high as u32) << 32, usize::try_from(*size).unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_layer_is_its_seed_and_size_and_meets_standardised_features() {
        let (shift, scale) = ([100.0, -3.0, 0.5], [0.1, 1.0, 4.0]);
        let mut w = TensorsWriter::new();
        Hidden::write_random(&mut w, 0xfedc_ba98_7654_3210, 64, &shift, &scale).unwrap();
        let payload = w.finish().unwrap();
        let h = Hidden::load(&payload, 3).unwrap().unwrap();
        let again = Hidden::random(0xfedc_ba98_7654_3210, 64, &shift, &scale);
        assert!(h.weight[..] == again.weight[..] && h.bias == again.bias);
        assert!(payload.len() < 1024, "described, not stored: {} bytes", payload.len());
        assert!(h.weight[..] != Hidden::random(1, 64, &shift, &scale).weight[..]);
        // At the shift itself only the drawn biases are left: within [-1, 1], about half positive.
        let weight = |i: usize| f32::from_le_bytes(h.weight[4 * i..4 * i + 4].try_into().unwrap());
        let mut at: Vec<f32> = (0..64).map(|u| (0..3).map(|i| weight(3 * u + i) * shift[i]).sum()).collect();
        h.activate(&mut at);
        let on = at.iter().filter(|v| **v > 0.0).count();
        assert!(at.iter().all(|v| (0.0..=1.001).contains(v)) && (16..48).contains(&on), "{on}: {at:?}");
    }

    #[test]
    fn misfits_are_refused() {
        let none = TensorsWriter::new().finish().unwrap();
        assert!(Hidden::load(&none, 3).unwrap().is_none());
        for (size, dim) in [(0, 3), (MOST + 1, 3), (8, 4)] {
            let mut w = TensorsWriter::new();
            Hidden::write_random(&mut w, 1, size, &[0.0; 3], &[1.0; 3]).unwrap();
            assert_eq!(Hidden::load(&w.finish().unwrap(), dim).unwrap_err().code(), Code::Shape);
        }
        let mut w = TensorsWriter::new();
        w.add_f32(WEIGHT, &[2, 3], &[0.0; 6]).unwrap();
        assert_eq!(Hidden::load(&w.finish().unwrap(), 3).unwrap_err().code(), Code::Missing);
        w.add_f32(BIAS, &[3], &[0.0; 3]).unwrap();
        assert_eq!(Hidden::load(&w.finish().unwrap(), 3).unwrap_err().code(), Code::Shape);
    }
}
