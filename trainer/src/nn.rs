//! The arithmetic of training: exact forward and backward passes over ragged batches.
//!
//! candle's fused operations (softmax, RMSNorm, rotary embedding, quantized matmul) cut gradients silently, and
//! its matmul keeps a gradient for every frozen weight; so each operation that a decoder needs is here, in a
//! file of its own, checked against finite differences: functions on slices, and a candle operator around those
//! that are graph nodes of their own. A whole layer is one operator ([`crate::decoder`]): at 10 to 100 tokens a
//! sequence, time goes into graph nodes, cleared gradients and copies long before it goes into arithmetic.
//!
//! A batch is the tokens of several sequences one after another, `[tokens, hidden]`, without
//! padding. Sums run in a fixed order, so results do not depend on the number of threads.

pub mod attention;
pub mod frozen_weight;
pub mod gate;
pub mod lm_loss;
pub mod matmul;
pub mod norm;
pub mod pool;

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, bail};

/// Rows below which a loop over rows is not worth splitting over threads.
pub(crate) const MIN_ROWS: usize = 16;

/// The contiguous `f32` values of an operator's input.
pub(crate) fn operand<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let CpuStorage::F32(v) = storage else { bail!("only f32 is trained on") };
    match layout.contiguous_offsets() {
        Some((a, b)) => Ok(&v[a..b]),
        None => bail!("a trained operator needs contiguous input"),
    }
}

/// Calls `f` with a tensor's values, without a copy if they are contiguous.
pub(crate) fn with_numbers<T>(t: &Tensor, f: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let t = t.contiguous()?;
    let (storage, layout) = t.storage_and_layout();
    let Storage::Cpu(storage) = &*storage else { bail!("training runs in main memory") };
    Ok(f(operand(storage, layout)?))
}

/// A copy of a tensor's values.
pub(crate) fn numbers(t: &Tensor) -> Result<Vec<f32>> {
    with_numbers(t, <[f32]>::to_vec)
}

/// `sum[i] += Σ_rows values[row, i]`.
pub(crate) fn add_rows(values: &[f32], sum: &mut [f32]) {
    for row in values.chunks_exact(sum.len()) {
        sum.iter_mut().zip(row).for_each(|(s, v)| *s += v);
    }
}

#[cfg(test)]
pub(crate) mod check {
    use candle_core::{Device, Result, Tensor, Var};
    use conpet_formats::model_spec::{
        Activation, Attention, Embedding, ModelSpec, Norm, NormKind, Output, Rope, RopeKind,
    };

    /// A small base with a partly rotated head and grouped heads.
    pub(crate) fn spec() -> ModelSpec {
        ModelSpec {
            arch: "llama".into(),
            name: "small".into(),
            n_layer: 3,
            hidden: 16,
            n_head: 4,
            n_kv_head: 2,
            head_dim: 4,
            ffn: 20,
            vocab: 40,
            context: 64,
            causal: true,
            norm_kind: NormKind::Rms,
            norm_eps: 1e-5,
            embedding: Embedding { scale: 1.0, positions: false, types: 0, norm: false },
            residual_scale: 1.0,
            attention_scale: 0.5,
            attention_cap: None,
            activation: Activation::Silu,
            gated: true,
            norms: &[Norm::Attn, Norm::Ffn],
            whole_qk_norm: false,
            biases: Vec::new(),
            fused: Vec::new(),
            ropes: vec![Rope::new(RopeKind::Adjacent, 100.0, 4)],
            longer: None,
            attention: vec![Attention { window: None, rope: Some(0) }],
            output: Output { norm: true, tied: true, scale: 1.0, cap: None },
            pooling: None,
            tables: Vec::new(),
        }
    }

    /// As [`gradients`], for functions on slices: `y = f(x)` and `dx = backward(x, dy)`.
    pub(crate) fn plain_gradient(
        x: &[f32],
        f: impl Fn(&[f32]) -> Vec<f32>,
        backward: impl Fn(&[f32], &[f32]) -> Vec<f32>,
    ) {
        let dy: Vec<f32> = (0..f(x).len()).map(|i| coefficient(i) as f32).collect();
        let got = backward(x, &dy);
        let scale = got.iter().fold(0.1f32, |m, v| m.max(v.abs()));
        for i in 0..x.len() {
            let at = |delta: f32| {
                let mut v = x.to_vec();
                v[i] += delta;
                f(&v).iter().enumerate().map(|(i, v)| f64::from(*v) * coefficient(i)).sum::<f64>()
            };
            let want = (at(1e-2) - at(-1e-2)) / 2e-2;
            let off = (f64::from(got[i]) - want).abs();
            assert!(off < 1e-2 * f64::from(scale), "[{i}]: gradient {} for {want}", got[i]);
        }
    }

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

    /// Varied values of size about 1.
    pub(crate) fn wave(n: usize, phase: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 * 1.3 + phase).sin() + (i % 3) as f32 * 0.2) * 0.8).collect()
    }
}
