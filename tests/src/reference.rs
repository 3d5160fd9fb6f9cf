//! Plain loops for every family, with the scalar reference of every PET kind at the points where
//! it acts: the specification of both trainer and runtime.

use conpet_formats::model_spec::{Activation, ModelSpec, Norm, NormKind, RopeKind};
use conpet_formats::pet::{Held, PetKind, PetSpec, Place, Point, Site, prefix, prompt};
use conpet_runtime::base::{Base, Linear};
use conpet_runtime::kernels::{Kernels, MatrixRef};
use conpet_runtime::norm::NormRef;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A module with its tensors by full name.
#[derive(Debug)]
pub struct Plain<'a> {
    /// Its spec.
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

    /// The change that its part of a kind makes to one token's values `y` at a point whose step read `x`.
    fn change(&self, kind: PetKind, (layer, point): (usize, Point), x: &[f32], y: &[f32]) -> Vec<f32> {
        let mut changed = y.to_vec();
        let part = self.pet.part(kind).and_then(|p| Some((p, p.pet.acts_at(point)?)));
        if let Some((part, place)) = part {
            part.pet.apply_reference(&self.held(layer, place), x, &mut changed);
        }
        changed.iter().zip(y).map(|(c, y)| c - y).collect()
    }

    fn get(&self, layer: usize, place: Place, name: &str) -> &[f32] {
        self.held(layer, place).get([name]).map_or(&[], |[v]| v)
    }
}

/// A module's weight at a site for the token at a position of the sequence.
pub type WeightAt<'a> = &'a dyn Fn(Site, usize) -> f32;
/// Modules with their weights.
type Blended<'a> = [(WeightAt<'a>, &'a Plain<'a>)];

/// Applies modules to one token's values at a point: kind by kind, it adds the weighted changes of all modules,
/// which all read the same values.
fn act(m: &Blended<'_>, (layer, t): (usize, usize), point: Point, x: &[f32], y: &mut [f32]) {
    let place = match point {
        Point::In(p) | Point::Out(p) | Point::Aside(p) | Point::Add(p) => p,
        Point::Layer => Place::Down,
    };
    for kind in PetKind::ALL {
        let changes: Vec<Vec<f32>> = m.iter().map(|(_, plain)| plain.change(*kind, (layer, point), x, y)).collect();
        for ((weight, _), change) in m.iter().zip(changes) {
            let weight = weight(Site { layer, place }, t);
            y.iter_mut().zip(change).for_each(|(y, c)| *y += weight * c);
        }
    }
}

/// The tensor of this name in any of the modules, or an empty one.
fn learned<'a>(m: &'a Blended<'_>, layer: usize, place: Place, name: &str) -> &'a [f32] {
    m.iter().map(|(_, plain)| plain.get(layer, place, name)).find(|v| !v.is_empty()).unwrap_or(&[])
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

/// A norm of some values, each `width` by themselves; the values themselves without a norm.
fn norm(norm: Option<NormRef<'_>>, x: &[f32]) -> Vec<f32> {
    let Some(n) = norm else { return x.to_vec() };
    let one = |x: &[f32]| -> Vec<f32> {
        let of = |f: &dyn Fn(f64) -> f64| x.iter().map(|v| f(f64::from(*v))).sum::<f64>() / x.len() as f64;
        let mean = if n.kind == NormKind::Layer { of(&|v| v) } else { 0.0 };
        let s = 1.0 / (of(&|v| (v - mean).powi(2)) + f64::from(n.eps)).sqrt();
        let bias = n.bias.iter().copied().chain(std::iter::repeat(0.0));
        let all = x.iter().zip(n.weight).zip(bias);
        all.map(|((x, w), b)| ((f64::from(*x) - mean) * s * f64::from(*w) + f64::from(b)) as f32).collect()
    };
    x.chunks(n.weight.len()).flat_map(one).collect()
}

fn plus(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// The result that a sublayer adds: the output `z` of its last linear, changed by what acts on it and beside it.
fn sublayer(m: &Blended<'_>, (layer, t, place): (usize, usize, Place), read: &[f32], mut z: Vec<f32>) -> Vec<f32> {
    let mut aside = vec![0.0; z.len()];
    act(m, (layer, t), Point::Aside(place), read, &mut aside);
    act(m, (layer, t), Point::Add(place), &[], &mut z);
    plus(&z, &aside)
}

/// Logits `[tokens, vocab]` of a base with modules in force, each at one weight; of an encoder its last states
/// `[tokens, hidden]`.
///
/// # Panics
/// If a token or a tensor does not fit the base.
pub fn logits(base: &Base, tokens: &[u32], modules: &[(f32, &Plain<'_>)]) -> Vec<f32> {
    let weights: Vec<_> = modules.iter().map(|(w, _)| move |_: Site, _: usize| *w).collect();
    let m: Vec<(WeightAt<'_>, &Plain<'_>)> =
        weights.iter().zip(modules).map(|(w, (_, p))| (w as WeightAt<'_>, *p)).collect();
    logits_weighed(base, tokens, &m)
}

/// As [`logits`], with weights by site and position.
///
/// # Panics
/// If a token or a tensor does not fit the base.
pub fn logits_weighed(base: &Base, tokens: &[u32], m: &Blended<'_>) -> Vec<f32> {
    let (spec, h) = (&base.spec, base.spec.hidden);
    let table = rows(base.embedding());
    let positions = base.positions().map(rows);
    let embed = |(at, t): (usize, &u32)| {
        let mut x: Vec<f32> = table[*t as usize].iter().map(|v| v * spec.embedding.scale).collect();
        x = base.token_type().map_or(x.clone(), |row| plus(&x, row));
        x = positions.as_ref().map_or(x.clone(), |rows| plus(&x, &rows[at]));
        norm(base.embedding_norm(), &x)
    };
    let embedded: Vec<f32> = tokens.iter().enumerate().flat_map(embed).collect();
    let learned_rows = learned(m, 0, Place::Embedding, prompt::ROWS);
    let learned_tokens = learned_rows.len() / h;
    let all = prompt::apply_reference(learned_rows, &embedded);
    let mut states: Vec<Vec<f32>> = all.chunks(h).map(<[f32]>::to_vec).collect();
    for l in 0..spec.n_layer {
        let w = base.layer(l);
        let weights = Linear::ALL.map(|x| if spec.has_linear(x) { rows(w.linear(x)) } else { Vec::new() });
        let linear = |t: usize, place: Place, x: &[f32]| {
            let mut x = x.to_vec();
            act(m, (l, t), Point::In(place), &[], &mut x);
            let mut y = product(&weights[place as usize], &x);
            y = w.bias(Linear::ALL[place as usize]).map_or(y.clone(), |b| plus(&y, b));
            act(m, (l, t), Point::Out(place), &x, &mut y);
            y
        };
        let before = |which: Norm, place: Place, t: usize, x: &[f32]| {
            let mut a = norm(w.norm(which), x);
            if spec.has(which) {
                act(m, (l, t), Point::Out(place), x, &mut a);
            }
            a
        };
        let (mut reads, mut queries) = (Vec::new(), Vec::new());
        let (mut all_keys, mut all_values): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (Vec::new(), Vec::new());
        for (t, x) in states.iter().enumerate() {
            let a = before(Norm::Attn, Place::AttnNorm, t, x);
            let [mut q, mut k, v] = [Place::Q, Place::K, Place::V].map(|p| linear(t, p, &a));
            for (x, which) in [(&mut q, Norm::Q), (&mut k, Norm::K)] {
                *x = norm(w.norm(which), x);
                turn(spec, l, t, x);
            }
            reads.push(a);
            queries.push(q);
            all_keys.push(k);
            all_values.push(v);
        }
        for (t, x) in states.iter_mut().enumerate() {
            let end = if spec.causal { t + 1 } else { all_keys.len() };
            let (keys, values) = (&all_keys[..end], &all_values[..end]);
            let (a, q) = (&reads[t], &queries[t]);
            // A window hides older tokens, but never learned rows.
            let first = spec.attention(l).window.map_or(0, |n| (t + 1).saturating_sub(n));
            let kept = if t < learned_tokens { 0 } else { learned_tokens };
            let seen = |rows: &[Vec<f32>]| [&rows[..kept], &rows[first.max(kept)..]].concat();
            let (keys, values) = (seen(keys), seen(values));
            let mut o = Vec::new();
            for (i, q) in q.chunks(spec.head_dim).enumerate() {
                let at = i / (spec.n_head / spec.n_kv_head) * spec.head_dim;
                let head = |rows: &[Vec<f32>]| -> Vec<f32> {
                    rows.iter().flat_map(|r| r[at..at + spec.head_dim].to_vec()).collect()
                };
                let pairs = [Place::K, Place::V].map(|p| {
                    let pairs = learned(m, l, p, prefix::PAIRS);
                    head(&pairs.chunks(spec.kv_dim()).map(<[f32]>::to_vec).collect::<Vec<_>>())
                });
                let own = [head(&keys), head(&values)];
                o.extend(prefix::attend_reference(
                    q,
                    pairs.each_ref().map(Vec::as_slice),
                    own.each_ref().map(Vec::as_slice),
                    (spec.attention_scale, spec.attention_cap),
                ));
            }
            let z = norm(w.norm(Norm::PostAttn), &linear(t, Place::Output, &o));
            let z = sublayer(m, (l, t, Place::Output), a, z);
            let sum: Vec<f32> = x.iter().zip(&z).map(|(x, z)| x + spec.residual_scale * z).collect();
            *x = norm(w.norm(Norm::AttnSum), &sum);
        }
        for (t, x) in states.iter_mut().enumerate() {
            let b = before(Norm::Ffn, Place::FfnNorm, t, x);
            let f = |g: f32| match spec.activation {
                Activation::Silu => g / (1.0 + (-g).exp()),
                Activation::GeluTanh => {
                    0.5 * g * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * (g + 0.044_715 * g.powi(3))).tanh())
                }
                Activation::Gelu => {
                    let mut x = [g];
                    Kernels::naive().activate(Activation::Gelu, &mut x);
                    x[0]
                }
            };
            let hidden: Vec<f32> = if spec.gated {
                let [gate, up] = [Place::Gate, Place::Up].map(|p| linear(t, p, &b));
                gate.iter().zip(&up).map(|(g, u)| f(*g) * u).collect()
            } else {
                linear(t, Place::Up, &b).iter().map(|u| f(*u)).collect()
            };
            let z = norm(w.norm(Norm::PostFfn), &linear(t, Place::Down, &hidden));
            let z = sublayer(m, (l, t, Place::Down), &b, z);
            let sum: Vec<f32> = x.iter().zip(&z).map(|(x, z)| x + spec.residual_scale * z).collect();
            *x = norm(w.norm(Norm::FfnSum), &sum);
            act(m, (l, t), Point::Layer, &[], x);
        }
    }
    let own = states.iter().skip(learned_tokens).map(|x| norm(base.output_norm(), x));
    if !spec.causal {
        return own.flatten().collect();
    }
    let output = rows(base.output());
    let bent = |v: f32| spec.output.cap.map_or(v, |c| c * (v / c).tanh());
    own.flat_map(|x| product(&output, &x)).map(|v| bent(v * spec.output.scale)).collect()
}

/// Turns the heads of one token's queries or keys at a position, as a layer does.
fn turn(spec: &ModelSpec, layer: usize, position: usize, x: &mut [f32]) {
    let Some(rope) = spec.rope(layer) else { return };
    for head in x.chunks_mut(spec.head_dim) {
        for (i, frequency) in rope.frequencies.iter().enumerate() {
            let (a, b) = match rope.kind {
                RopeKind::Adjacent => (2 * i, 2 * i + 1),
                RopeKind::Halves => (i, i + rope.dim / 2),
            };
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (p, q) = (f64::from(head[a]), f64::from(head[b]));
            let by = f64::from(rope.magnitude);
            head[a] = (by * (p * cos - q * sin)) as f32;
            head[b] = (by * (p * sin + q * cos)) as f32;
        }
    }
}
