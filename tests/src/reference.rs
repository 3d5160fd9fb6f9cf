//! A decoder of plain loops, with every PET kind's scalar reference where the kind says that it acts:
//! what trainer and runtime must both compute.

use conpet_formats::model_spec::ModelSpec;
use conpet_formats::pet::{Held, PetSpec, Place, Point, Site, prefix, prompt};
use conpet_runtime::base::{Base, Linear};
use conpet_runtime::forward::rope_table;
use conpet_runtime::kernels::{Kernels, MatrixRef};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A module, its tensors by full name.
#[derive(Debug)]
pub struct Plain<'a> {
    /// What it is.
    pub pet: &'a PetSpec,
    /// Tensors of floats.
    pub floats: BTreeMap<String, Vec<f32>>,
    /// Tensors of integers.
    pub integers: &'a BTreeMap<String, Arc<Vec<i32>>>,
}

impl Plain<'_> {
    fn held(&self, layer: usize, place: Place) -> Held<'_> {
        let site = format!("{}.", Site { layer, place });
        Held {
            floats: self.floats.iter().filter_map(|(n, v)| Some((n.strip_prefix(&site)?, &v[..]))).collect(),
            integers: self.integers.iter().filter_map(|(n, v)| Some((n.strip_prefix(&site)?, &v[..]))).collect(),
        }
    }

    /// What the parts do to one token's numbers at a point, in their order.
    fn act(&self, layer: usize, point: Point, x: &[f32], y: &mut [f32]) {
        for part in self.pet.parts() {
            if let Some(place) = part.pet.acts_at(point) {
                part.pet.apply_reference(&self.held(layer, place), x, y);
            }
        }
    }

    fn get(&self, layer: usize, place: Place, name: &str) -> &[f32] {
        self.held(layer, place).get([name]).map_or(&[], |[v]| v)
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

/// What a sublayer adds: what its last linear gave, changed by what acts on it and beside it.
fn sublayer(m: &Plain<'_>, (layer, place): (usize, Place), read: &[f32], mut z: Vec<f32>) -> Vec<f32> {
    let mut aside = vec![0.0; z.len()];
    m.act(layer, Point::Aside(place), read, &mut aside);
    m.act(layer, Point::Add(place), &[], &mut z);
    plus(&z, &aside)
}

/// Logits `[tokens, vocab]` of a llama-family base with a module in force.
///
/// # Panics
/// If a token or a tensor does not fit the base.
pub fn logits(base: &Base, tokens: &[u32], m: &Plain<'_>) -> Vec<f32> {
    let (spec, h) = (&base.spec, base.spec.hidden);
    let table = rows(base.embedding());
    let embedded: Vec<f32> = tokens.iter().flat_map(|t| table[*t as usize].clone()).collect();
    let learned_rows = m.get(0, Place::Embedding, prompt::ROWS);
    let all = prompt::apply_reference(learned_rows, &embedded);
    let mut states: Vec<Vec<f32>> = all.chunks(h).map(<[f32]>::to_vec).collect();
    for l in 0..spec.n_layer {
        let w = base.layer(l);
        let weights = Linear::ALL.map(|x| rows(w.linear(x)));
        let linear = |place: Place, x: &[f32]| {
            let mut x = x.to_vec();
            m.act(l, Point::In(place), &[], &mut x);
            let mut y = product(&weights[place as usize], &x);
            m.act(l, Point::Out(place), &x, &mut y);
            y
        };
        let (mut keys, mut values): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (Vec::new(), Vec::new());
        for (t, x) in states.iter_mut().enumerate() {
            let mut a = norm(spec, x, w.attn_norm);
            m.act(l, Point::Out(Place::AttnNorm), x, &mut a);
            let [mut q, mut k, v] = [Place::Q, Place::K, Place::V].map(|p| linear(p, &a));
            let mut turn = vec![0.0; spec.rope_dim];
            rope_table(spec.rope_base, t, &mut turn);
            for x in [&mut q, &mut k] {
                Kernels::naive().rope(x, spec.head_dim, &turn, spec.rope);
            }
            keys.push(k);
            values.push(v);
            let mut o = Vec::new();
            for (i, q) in q.chunks(spec.head_dim).enumerate() {
                let at = i / (spec.n_head / spec.n_kv_head) * spec.head_dim;
                let head = |rows: &[Vec<f32>]| -> Vec<f32> {
                    rows.iter().flat_map(|r| r[at..at + spec.head_dim].to_vec()).collect()
                };
                let learned = [Place::K, Place::V].map(|p| {
                    let pairs = m.get(l, p, prefix::PAIRS);
                    head(&pairs.chunks(spec.kv_dim()).map(<[f32]>::to_vec).collect::<Vec<_>>())
                });
                let own = [head(&keys), head(&values)];
                o.extend(prefix::attend_reference(
                    q,
                    learned.each_ref().map(Vec::as_slice),
                    own.each_ref().map(Vec::as_slice),
                ));
            }
            *x = plus(x, &sublayer(m, (l, Place::Output), &a, linear(Place::Output, &o)));
        }
        for x in &mut states {
            let mut b = norm(spec, x, w.ffn_norm);
            m.act(l, Point::Out(Place::FfnNorm), x, &mut b);
            let [gate, up] = [Place::Gate, Place::Up].map(|p| linear(p, &b));
            let hidden: Vec<f32> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
            *x = plus(x, &sublayer(m, (l, Place::Down), &b, linear(Place::Down, &hidden)));
            m.act(l, Point::Layer, &[], x);
        }
    }
    let output = rows(base.output());
    let own = states.iter().skip(learned_rows.len() / h);
    own.flat_map(|x| product(&output, &norm(spec, x, base.output_norm()))).collect()
}
