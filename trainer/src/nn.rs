//! Differentiable operations over ragged batches, each with an exact backward.
//!
//! candle's fused operations (softmax, RMSNorm, rotary embedding, quantized matmul) cut gradients
//! silently, and its matmul keeps a gradient for every frozen weight; so each operation a decoder
//! needs is a custom op here, in a file of its own, checked against finite differences. A batch is
//! the tokens of several sequences one after another, `[tokens, hidden]`, without padding.

pub mod attention;
pub mod linear;
pub mod lm_loss;
pub mod pool;
pub mod rms_norm;
pub mod swiglu;

use candle_core::{CpuStorage, Layout, Result, Shape, Tensor, bail};

/// The contiguous `f32` numbers an op was given.
pub(crate) fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(v) = storage else { bail!("only f32 is trained on") };
    match layout.contiguous_offsets() {
        Some((a, b)) => Ok(&v[a..b]),
        None => bail!("a trained op needs contiguous input"),
    }
}

/// A tensor's numbers.
pub(crate) fn numbers(t: &Tensor) -> Result<Vec<f32>> {
    t.flatten_all()?.to_vec1()
}

/// Wraps what an op computed.
pub(crate) fn stored(v: Vec<f32>, shape: impl Into<Shape>) -> (CpuStorage, Shape) {
    (CpuStorage::F32(v), shape.into())
}

#[cfg(test)]
pub(crate) mod check {
    use candle_core::{Device, Result, Tensor, Var};

    /// Compares gradients with central differences: `Σ c · f(x)` for fixed uneven `c`, over every
    /// element. Tolerance: f32 rounding of the difference quotient, about 1e-2 relative at step 1e-2.
    pub(crate) fn gradients(inputs: &[(Vec<f32>, Vec<usize>)], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
        let dev = Device::Cpu;
        let vars: Vec<Var> = inputs
            .iter()
            .map(|(v, s)| Var::from_tensor(&Tensor::from_vec(v.clone(), s.as_slice(), &dev).unwrap()).unwrap())
            .collect();
        let loss = |xs: &[Tensor]| -> f64 {
            let y = f(xs).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            y.iter().enumerate().map(|(i, v)| f64::from(*v) * coefficient(i)).sum()
        };
        let tensors: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
        let y = f(&tensors).unwrap();
        let c: Vec<f32> = (0..y.elem_count()).map(|i| coefficient(i) as f32).collect();
        let total =
            (y.flatten_all().unwrap() * Tensor::from_vec(c, y.elem_count(), &dev).unwrap()).unwrap().sum_all().unwrap();
        let grads = total.backward().unwrap();
        for (which, (var, (values, shape))) in vars.iter().zip(inputs).enumerate() {
            let got = grads
                .get(var)
                .expect("a gradient reaches every input")
                .flatten_all()
                .unwrap()
                .to_vec1::<f32>()
                .unwrap();
            let scale = got.iter().fold(0.1f32, |m, v| m.max(v.abs()));
            for i in 0..values.len() {
                let at = |delta: f32| {
                    let mut v = values.clone();
                    v[i] += delta;
                    let mut xs: Vec<Tensor> = tensors.iter().map(Tensor::detach).collect();
                    xs[which] = Tensor::from_vec(v, shape.as_slice(), &dev).unwrap();
                    loss(&xs)
                };
                let want = (at(1e-2) - at(-1e-2)) / 2e-2;
                assert!(
                    (f64::from(got[i]) - want).abs() < 1e-2 * f64::from(scale),
                    "input {which} [{i}]: gradient {} for {want}",
                    got[i]
                );
            }
        }
    }

    fn coefficient(i: usize) -> f64 {
        0.5 + ((i * 7919) % 13) as f64 / 13.0
    }

    /// Uneven numbers of size about 1.
    pub(crate) fn wave(n: usize, phase: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 * 1.3 + phase).sin() + (i % 3) as f32 * 0.2) * 0.8).collect()
    }
}
