//! A decoder of plain loops, of every family, with every PET kind's scalar reference in its place: what trainer and
//! runtime must both compute.

use conpet_formats::model_spec::{Activation, ModelSpec};
use conpet_formats::pet::adapter::{self, Form};
use conpet_formats::pet::{Pet, PetSpec, Place, Site, bias, ia3, lora, prefix, prompt, sparse};
use conpet_runtime::base::{Base, Linear};
use conpet_runtime::rope::rope_table;
use conpet_runtime::kernels::{Kernels, MatrixRef};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A module's tensors by full name.
pub(super) struct Numbers<'a> {
    pub(super) pet: &'a PetSpec,
    pub(super) values: BTreeMap<String, Vec<f32>>,
    pub(super) indices: &'a BTreeMap<String, Arc<Vec<i32>>>,
}

impl Numbers<'_> {
    fn get(&self, layer: usize, place: Place, name: &str) -> Option<&[f32]> {
        self.values.get(&format!("{}.{name}", Site { layer, place })).map(Vec::as_slice)
    }

    /// What acts at a linear, in the order of the kinds.
    fn linear(&self, layer: usize, place: Place, x: &[f32], y: &mut [f32]) {
        for part in self.pet.parts() {
            match part.pet {
                Pet::Lora(l) => {
                    if let Some((a, b)) = self.get(layer, place, "lora_a").zip(self.get(layer, place, "lora_b")) {
                        lora::apply_reference(a, b, l.rank, l.scale(), x, y);
                    }
                }
                Pet::Sparse(_) => {
                    if let Some(v) = self.get(layer, place, "sparse") {
                        let index = &self.indices[&format!("{}.sparse_index", Site { layer, place })];
                        sparse::apply_reference(index, v, x, y);
                    }
                }
                Pet::Ia3 if !ia3::scales_input(place) => {
                    if let Some(l) = self.get(layer, place, "ia3") {
                        ia3::apply_reference(l, y);
                    }
                }
                Pet::Bias => self.bias(layer, place, y),
                _ => {}
            }
        }
    }

    fn bias(&self, layer: usize, place: Place, y: &mut [f32]) {
        if let Some(b) = self.get(layer, place, "bias") {
            bias::apply_reference(b, y);
        }
    }

    /// An adapter of one of these forms at a sublayer: it reads `x` if parallel, else `z` itself.
    fn adapter(&self, layer: usize, place: Place, forms: &[Form], x: &[f32], z: &mut [f32]) {
        for part in self.pet.parts() {
            let Pet::Adapter(a) = part.pet else { continue };
            if let (true, Some(d)) = (forms.contains(&a.form), self.get(layer, place, adapter::NAMES[0])) {
                let [b, up, c] = [1, 2, 3].map(|i| self.get(layer, place, adapter::NAMES[i]).unwrap());
                let u = if a.form == Form::Parallel { x.to_vec() } else { z.to_vec() };
                adapter::apply_reference(a.act, [d, b, up, c], &u, z);
            }
        }
    }
}

fn rows(w: MatrixRef<'_>) -> Vec<Vec<f32>> {
    let row = |i| {
        let mut out = vec![0.0; w.cols];
        Kernels::naive().dequantize_row(w, i, &mut out);
        out
    };
    (0..w.rows).map(row).collect()
}

fn product(w: &[Vec<f32>], x: &[f32]) -> Vec<f32> {
    let dot = |row: &Vec<f32>| row.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32;
    w.iter().map(dot).collect()
}

fn norm(spec: &ModelSpec, x: &[f32], weight: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    Kernels::naive().rms_norm(x, weight, spec.norm_eps, &mut y);
    y
}

fn plus(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// What a sublayer adds, in families that normalise it.
fn post(spec: &ModelSpec, norms: Option<[&[f32]; 2]>, which: usize, z: Vec<f32>) -> Vec<f32> {
    norms.map_or(z.clone(), |n| norm(spec, &z, n[which]))
}

/// Logits `[tokens, vocab]` of a base with a module in force.
pub(super) fn logits(base: &Base, tokens: &[u32], m: &Numbers<'_>) -> Vec<f32> {
    let (spec, h) = (&base.spec, base.spec.hidden);
    let table = rows(base.embedding());
    let embedded: Vec<f32> =
        tokens.iter().flat_map(|t| table[*t as usize].iter().map(|v| v * spec.embedding_scale)).collect();
    let learned_rows = m.get(0, Place::Embedding, "prompt").unwrap_or(&[]);
    let all = prompt::apply_reference(learned_rows, &embedded);
    let mut states: Vec<Vec<f32>> = all.chunks(h).map(<[f32]>::to_vec).collect();
    let learned_tokens = learned_rows.len() / h;
    for l in 0..spec.n_layer {
        let w = base.layer(l);
        let weights = Linear::ALL.map(|x| rows(w.linear(x)));
        let linear = |place: Place, x: &[f32]| {
            let mut y = product(&weights[place as usize], x);
            y = w.bias(Linear::ALL[place as usize]).map_or(y.clone(), |b| plus(&y, b));
            m.linear(l, place, x, &mut y);
            y
        };
        let (mut keys, mut values): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (Vec::new(), Vec::new());
        for (t, x) in states.iter_mut().enumerate() {
            let mut a = norm(spec, x, w.attn_norm);
            m.bias(l, Place::AttnNorm, &mut a);
            let [mut q, mut k, v] = [Place::Q, Place::K, Place::V].map(|p| linear(p, &a));
            let rope = spec.rope(l);
            let mut turn = vec![0.0; rope.dim];
            rope_table(rope.base, t, &mut turn);
            for (x, which) in [(&mut q, 0), (&mut k, 1)] {
                if let Some(norms) = w.qk_norm {
                    *x = x.chunks(spec.head_dim).flat_map(|head| norm(spec, head, norms[which])).collect();
                }
                Kernels::naive().rope(x, spec.head_dim, &turn, rope.kind);
            }
            keys.push(k);
            values.push(v);
            // A window hides older tokens, but learned rows from none of those after them.
            let first = spec.attention(l).window.map_or(0, |n| (t + 1).saturating_sub(n));
            let kept = if t < learned_tokens { 0 } else { learned_tokens };
            let seen = |rows: &[Vec<f32>]| [&rows[..kept], &rows[first.max(kept)..]].concat();
            let (keys, values) = (seen(&keys), seen(&values));
            let mut o = Vec::new();
            for (i, q) in q.chunks(spec.head_dim).enumerate() {
                let at = i / (spec.n_head / spec.n_kv_head) * spec.head_dim;
                let head = |rows: &[Vec<f32>]| -> Vec<f32> {
                    rows.iter().flat_map(|r| r[at..at + spec.head_dim].to_vec()).collect()
                };
                let learned = [Place::K, Place::V].map(|p| {
                    let pairs = m.get(l, p, prefix::PAIRS).unwrap_or(&[]);
                    head(&pairs.chunks(spec.kv_dim()).map(<[f32]>::to_vec).collect::<Vec<_>>())
                });
                let own = [head(&keys), head(&values)];
                o.extend(prefix::attend_reference(
                    q,
                    learned.each_ref().map(Vec::as_slice),
                    own.each_ref().map(Vec::as_slice),
                ));
            }
            let mut z = post(spec, w.post_norm, 0, linear(Place::Output, &o));
            m.adapter(l, Place::Output, &[Form::Houlsby, Form::Parallel], &a, &mut z);
            *x = plus(x, &z);
        }
        for x in &mut states {
            let mut b = norm(spec, x, w.ffn_norm);
            m.bias(l, Place::FfnNorm, &mut b);
            let [gate, up] = [Place::Gate, Place::Up].map(|p| linear(p, &b));
            let f = |g: f32| match spec.activation {
                Activation::Silu => g / (1.0 + (-g).exp()),
                Activation::GeluTanh => {
                    0.5 * g * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3))).tanh())
                }
            };
            let mut hidden: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| f(*g) * u).collect();
            if let Some(s) = m.get(l, Place::Down, "ia3") {
                ia3::apply_reference(s, &mut hidden);
            }
            let mut z = post(spec, w.post_norm, 1, linear(Place::Down, &hidden));
            m.adapter(l, Place::Down, &[Form::Houlsby, Form::Parallel], &b, &mut z);
            *x = plus(x, &z);
            m.adapter(l, Place::Down, &[Form::Pfeiffer], &[], x);
        }
    }
    let output = rows(base.output());
    let own = states.iter().skip(learned_tokens);
    own.flat_map(|x| product(&output, &norm(spec, x, base.output_norm()))).collect()
}
