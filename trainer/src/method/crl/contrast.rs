//! The losses of CRL: supervised contrastive loss against a bank, and consistency with the stage before.

use crate::fit::{Buffers, Done, Extra, Labelled, Loss, Recipe};
use crate::optim::Param;
use crate::rng::Stream;
use candle_core::{Device, Result, Tensor};
use conpet_formats::head::{log_softmax, logits_reference};
use std::collections::BTreeMap;

/// Width of a projected row.
pub(super) const OUT: usize = 64;
/// Factor on similarities before their softmax (10, as published).
const SHARP: f32 = 10.0;
const BANK: &str = "bank";

/// The similarities of the classes to each other before the task.
pub(super) struct Consistency {
    /// `[old, old]`: row y is `softmax(10 · P P_y)`.
    was: Vec<f32>,
    old: usize,
}

impl Consistency {
    /// From the class means `[old, dim]` of the stage before.
    pub(super) fn new(means: &[f32], dim: usize) -> Self {
        let old = means.len() / dim;
        let p: Vec<f32> = means.chunks_exact(dim).flat_map(|m| unit(m.to_vec())).collect();
        let row = |y: usize| {
            let mut z = logits_reference(&p, &vec![0.0; old], &p[y * dim..(y + 1) * dim]);
            z.iter_mut().for_each(|v| *v *= SHARP);
            log_softmax(&mut z, 1.0);
            z.into_iter().map(f32::exp)
        };
        Self { was: (0..old).flat_map(row).collect(), old }
    }
}

/// The recipe of both phases.
pub(super) struct Contrast {
    /// `w1 [dim, dim]`, `b1 [dim]`, `w2 [64, dim]`, `b2 [64]`.
    pub(super) projection: Vec<Extra>,
    /// The bank's slot of each row that has one.
    pub(super) slots: BTreeMap<usize, usize>,
    /// The class of each slot.
    pub(super) classes: Vec<usize>,
    /// The bank `[slots, 64]` before the first step.
    pub(super) bank: Vec<f32>,
    pub(super) temperature: f64,
    /// Number of slots that a step is compared with.
    pub(super) sample: usize,
    pub(super) seed: u64,
    pub(super) name: String,
    pub(super) consistency: Option<Consistency>,
}

fn unit(mut v: Vec<f32>) -> Vec<f32> {
    let norm = v.iter().map(|x| x * x).sum::<f32>().sqrt().max(1e-12);
    v.iter_mut().for_each(|x| *x /= norm);
    v
}

/// One row through a projection: what [`Contrast::projected`] computes with gradients.
pub(super) fn project(h: &[f32], parts: &[Vec<f32>]) -> Vec<f32> {
    let mut hidden = logits_reference(&parts[0], &parts[1], h);
    hidden.iter_mut().for_each(|v| *v = v.max(0.0));
    unit(logits_reference(&parts[2], &parts[3], &hidden))
}

impl Contrast {
    fn projected(&self, b: &Labelled<'_>) -> Result<Tensor> {
        let layer = |x: &Tensor, w: &str, c: &str| x.matmul(&b.var(w)?.t()?)?.broadcast_add(b.var(c)?);
        let x = layer(&layer(b.features, "proj.w1", "proj.b1")?.relu()?, "proj.w2", "proj.b2")?;
        x.broadcast_div(&(x.sqr()?.sum_keepdim(1)? + 1e-12)?.sqrt()?)
    }

    /// The slots that this step is compared with: some of the bank, and for each row one more of its class.
    fn compared(&self, b: &Labelled<'_>) -> Vec<usize> {
        let n = self.classes.len();
        let mut rng = Stream::new(self.seed, &format!("{}/bank", self.name), b.step);
        let mut places: Vec<usize> = (0..n).collect();
        if self.sample < n {
            rng.shuffle(&mut places);
            places.truncate(self.sample);
        }
        for (row, class) in b.rows.iter().zip(b.classes) {
            let own = self.slots.get(row);
            let same = (0..n).filter(|p| self.classes[*p] == *class as usize && Some(p) != own);
            let same: Vec<usize> = same.collect();
            if !same.is_empty() {
                places.push(same[rng.below(same.len())]);
            }
        }
        places.sort_unstable();
        places.dedup();
        places
    }

    /// Mean over the rows of the supervised contrastive loss; a row is not compared with itself.
    fn contrast(&self, b: &Labelled<'_>, x: &Tensor) -> Result<Tensor> {
        let places = self.compared(b);
        let (n, k, bank) = (b.rows.len(), places.len(), &b.buffers[BANK]);
        let z: Vec<f32> = places.iter().flat_map(|p| &bank[p * OUT..(p + 1) * OUT]).copied().collect();
        let z = Tensor::from_vec(z, (k, OUT), &Device::Cpu)?;
        // Weight 1/|P_i| for slots of the row's class; the row's own slot is left out of the denominator.
        let (mut weight, mut out) = (vec![0.0f32; n * k], vec![0.0f32; n * k]);
        for (i, (row, class)) in b.rows.iter().zip(b.classes).enumerate() {
            let own = self.slots.get(row);
            let like = |p: &usize| self.classes[*p] == *class as usize && Some(p) != own;
            let positive = places.iter().filter(|p| like(p)).count().max(1) as f32;
            for (j, p) in places.iter().enumerate() {
                weight[i * k + j] = if like(p) { 1.0 / positive } else { 0.0 };
                out[i * k + j] = if Some(p) == own { -1e9 } else { 0.0 };
            }
        }
        let (weight, out) =
            (Tensor::from_vec(weight, (n, k), &Device::Cpu)?, Tensor::from_vec(out, (n, k), &Device::Cpu)?);
        let s = ((x.matmul(&z.t()?)? / self.temperature)? + out)?;
        (weight * candle_nn::ops::log_softmax(&s, 1)?)?.sum(1)?.mean(0)?.neg()
    }

    /// `Σ_old rows KL(was ‖ is) / rows`.
    fn consistency(&self, c: &Consistency, b: &Labelled<'_>, x: &Tensor) -> Result<Tensor> {
        let (n, old, bank) = (b.rows.len(), c.old, &b.buffers[BANK]);
        let mut centres = vec![0.0f32; old * OUT];
        for (class, z) in self.classes.iter().zip(bank.chunks_exact(OUT)).filter(|(c, _)| **c < old) {
            centres[class * OUT..(class + 1) * OUT].iter_mut().zip(z).for_each(|(c, v)| *c += v);
        }
        let centres: Vec<f32> = centres.chunks_exact(OUT).flat_map(|v| unit(v.to_vec())).collect();
        let centres = Tensor::from_vec(centres, (old, OUT), &Device::Cpu)?;
        let is = candle_nn::ops::log_softmax(&(x.matmul(&centres.t()?)? * f64::from(SHARP))?, 1)?;
        let (mut was, mut entropy) = (vec![0.0f32; n * old], 0.0);
        for (i, y) in b.classes.iter().map(|y| *y as usize).enumerate().filter(|(_, y)| *y < old) {
            let row = &c.was[y * old..(y + 1) * old];
            was[i * old..(i + 1) * old].copy_from_slice(row);
            entropy += row.iter().filter(|p| **p > 0.0).map(|p| f64::from(*p) * f64::from(*p).ln()).sum::<f64>();
        }
        let cross = (Tensor::from_vec(was, (n, old), &Device::Cpu)? * is)?.sum_all()?;
        (cross.neg()? + entropy)? / n as f64
    }
}

impl Recipe for Contrast {
    fn name(&self) -> String {
        format!("crl {} {} {}", self.temperature, self.sample, self.consistency.is_some())
    }

    fn parameters(&self) -> Vec<Extra> {
        self.projection.clone()
    }

    fn buffers(&self, _params: &BTreeMap<String, Param>) -> Result<Buffers> {
        Ok(Buffers::from([(BANK.to_owned(), self.bank.clone())]))
    }

    fn loss(&self, b: &Labelled<'_>) -> Result<Loss> {
        let x = self.projected(b)?;
        let mut mean = self.contrast(b, &x)?;
        if let Some(c) = &self.consistency {
            mean = (mean + self.consistency(c, b, &x)?)?;
        }
        Ok(Loss { mean, notes: Some(x.detach()) })
    }

    fn after(&self, done: &Done<'_>, buffers: &mut Buffers) -> Result<()> {
        let Some(bank) = buffers.get_mut(BANK) else { return Ok(()) };
        for (row, x) in done.rows.iter().zip(done.notes.chunks_exact(OUT)) {
            if let Some(p) = self.slots.get(row) {
                bank[p * OUT..(p + 1) * OUT].copy_from_slice(x);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::numbers;
    use candle_core::Var;

    fn axis(i: usize) -> Vec<f32> {
        (0..OUT).map(|j| if i == j { 1.0 } else { 0.0 }).collect()
    }

    fn recipe(consistency: Option<Consistency>) -> Contrast {
        Contrast {
            projection: Vec::new(),
            slots: (0..4).map(|i| (i, i)).collect(),
            classes: vec![0, 0, 1, 1],
            bank: [axis(0), axis(0), axis(1), axis(1)].concat(),
            temperature: 0.5,
            sample: 100,
            seed: 1,
            name: "t".into(),
            consistency,
        }
    }

    #[test]
    fn contrast_is_the_formula_and_draws_to_its_class() {
        let r = recipe(None);
        let buffers = r.buffers(&BTreeMap::new()).unwrap();
        let x =
            Var::from_tensor(&Tensor::from_vec([axis(0), axis(0)].concat(), (2, OUT), &Device::Cpu).unwrap()).unwrap();
        let loss = |classes: &[u32]| {
            let vars = BTreeMap::new();
            let b = Labelled { rows: &[0, 1], classes, features: &x, vars: &vars, buffers: &buffers, step: 0 };
            r.contrast(&b, &x).unwrap()
        };
        // Row 0 is compared with slot 1 (same class, product 1) and slots 2 and 3 (other classes, product 0),
        // not with itself.
        let e = 2.0f32.exp();
        let want = -(e / (e + 2.0)).ln();
        let right = loss(&[0, 0]);
        assert!((right.to_scalar::<f32>().unwrap() - want).abs() < 1e-5);
        let wrong = loss(&[1, 1]);
        assert!(wrong.to_scalar::<f32>().unwrap() > want + 1.0);
        // Gradient descent moves the row towards the slots of its class.
        let g = numbers(wrong.backward().unwrap().get(&x).unwrap()).unwrap();
        assert!(g[1] < 0.0 && g[0] > 0.0);
    }

    #[test]
    fn consistency_is_least_where_resemblance_is_as_it_was() {
        // Two old classes, orthogonal to each other before the task.
        let r = recipe(Some(Consistency::new(&[3.0, 0.0, 0.0, 2.0], 2)));
        let buffers = r.buffers(&BTreeMap::new()).unwrap();
        let kl = |v: Vec<f32>| {
            let (x, vars) = (Tensor::from_vec(v, (1, OUT), &Device::Cpu).unwrap(), BTreeMap::new());
            let b = Labelled { rows: &[0], classes: &[0], features: &x, vars: &vars, buffers: &buffers, step: 0 };
            r.consistency(r.consistency.as_ref().unwrap(), &b, &x).unwrap().to_scalar::<f32>().unwrap()
        };
        assert!(kl(axis(0)).abs() < 1e-4, "{}", kl(axis(0)));
        assert!(kl(axis(1)) > 1.0);
    }
}
