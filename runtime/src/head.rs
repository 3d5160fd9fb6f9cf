//! Heads, and the combination of a head's posterior with the selector's.

use crate::choice::Choices;
use crate::cpu::Cpu;
use crate::error::{Code, Error, Result};
use crate::kernels::MatrixRef;
use conpet_formats::bundle::manifest::{HeadEntry, Manifest};
use conpet_formats::choice;
use conpet_formats::feature::FeatureSpec;
use conpet_formats::head::{BIAS, HeadKind, WEIGHT, log_softmax};
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::ModelSpec;
use conpet_formats::quant::QuantType;
use conpet_formats::selector::Decision;
use conpet_formats::tensors::{Dtype, Tensors};
use std::ops::Range;

/// A loaded head.
#[derive(Debug, Clone)]
pub struct Head {
    form: Form,
    temperature: f32,
    blend: f32,
    /// The feature that it reads.
    pub feature: FeatureSpec,
    /// (task, label index within the task) of each row.
    pub classes: Vec<(usize, usize)>,
}

/// The two forms of head.
#[derive(Debug, Clone)]
enum Form {
    Linear(Linear),
    Choice(Choices),
}

/// A linear head: `weight [classes, dim]` in the map, `bias [classes]`.
#[derive(Debug, Clone)]
struct Linear {
    map: Mapped,
    weight: Range<usize>,
    ty: QuantType,
    bias: Vec<f32>,
    dim: usize,
}

impl Head {
    /// Loads the head at `range` of `map`.
    ///
    /// # Errors
    /// If the payload's shapes do not fit the manifest or the base, or the head reads a layer of the trunk
    /// other than its last.
    pub fn load(
        entry: &HeadEntry,
        manifest: &Manifest,
        payload: (Mapped, Range<usize>),
        spec: &ModelSpec,
    ) -> Result<Self> {
        let classes: Vec<(usize, usize)> = entry
            .tasks
            .iter()
            .flat_map(|t| {
                let labels = manifest.tasks.get(*t as usize).map_or(0, |task| task.labels.len());
                (0..labels).map(|l| (*t as usize, l))
            })
            .collect();
        let form = match entry.kind {
            HeadKind::Linear => {
                if let Some(p) = entry.feature.parts.iter().find(|p| p.layer < manifest.trunk) {
                    let what = format!("it reads layer {} of a trunk of {} layers", p.layer, manifest.trunk);
                    return Err(
                        Error::new(Code::Value, what).hint("a head reads the trunk's last layer, or one above it")
                    );
                }
                Form::Linear(Linear::load(entry, payload, classes.len(), entry.feature.dim(spec.hidden))?)
            }
            kind => {
                let labels = choice::read(&payload.0[payload.1], classes.len(), spec.vocab)?;
                Form::Choice(Choices::new(labels, kind == HeadKind::ChoiceMean))
            }
        };
        Ok(Self {
            form,
            temperature: entry.temperature.to_f64() as f32,
            blend: entry.blend.to_f64() as f32,
            feature: entry.feature.clone(),
            classes,
        })
    }

    /// Whether the selector's posterior of its classes is joined with its own.
    pub fn joins(&self) -> bool {
        self.blend > 0.0
    }

    /// The labels of a choice head, which scores by running them; `None` for a linear head.
    pub(crate) fn choices(&self) -> Option<&Choices> {
        match &self.form {
            Form::Choice(c) => Some(c),
            Form::Linear(_) => None,
        }
    }

    /// Raw scores `[n, classes]` of a linear head for features `[n, dim]`.
    ///
    /// # Panics
    /// If it is a choice head.
    pub(crate) fn logits(&self, cpu: &Cpu, features: &[f32]) -> Vec<f32> {
        match &self.form {
            Form::Linear(l) => l.logits(cpu, features),
            Form::Choice(_) => unreachable!("a choice head reads no feature"),
        }
    }

    /// Log scores of this head's classes, joined with the selector's own class posterior:
    /// `log softmax_c(log softmax(logits / T)[c] + blend · log p_selector(c))`. `logits` are those of one module, or of
    /// several one after another (an ensemble): then each class has the best of their probabilities
    /// (LAE, Gao et al. 2023, arXiv 2303.10070).
    ///
    /// A product of experts (Hinton 2002), a distribution over the head's classes: whatever it says among tasks,
    /// the selector's posterior has said already.
    ///
    /// `selector_classes[c]` is the selector's class for this head's row `c`, if it has one.
    pub fn log_scores(
        &self,
        logits: &[f32],
        decision: Option<&Decision>,
        selector_classes: &[Option<usize>],
    ) -> Vec<f32> {
        join(logits, self.temperature, self.blend, decision, selector_classes)
    }
}

impl Linear {
    fn load(entry: &HeadEntry, (map, range): (Mapped, Range<usize>), classes: usize, dim: usize) -> Result<Self> {
        let base = map.as_ptr() as usize;
        let tensors = Tensors::parse(&map[range])?;
        let need =
            |name: &str| tensors.get(name).ok_or_else(|| Error::new(Code::Missing, format!("no tensor {name:?}")));
        let (weight, bias) = (need(WEIGHT)?, need(BIAS)?);
        if weight.shape != [classes, dim] || bias.shape != [classes] || classes == 0 {
            return Err(Error::new(
                Code::Shape,
                format!(
                    "head {} has weight {:?} and bias {:?}; its {classes} labels and features of {dim} values need [{classes}, {dim}]",
                    entry.id, weight.shape, bias.shape,
                ),
            ));
        }
        let ty = match weight.dtype {
            Dtype::F32 => QuantType::F32,
            Dtype::F16 => QuantType::F16,
            other => return Err(Error::new(Code::Type, format!("head weight of dtype {other:?}"))),
        };
        let start = weight.data.as_ptr() as usize - base;
        let (weight_range, bias) = (start..start + weight.data.len(), bias.to_f32());
        Ok(Self { weight: weight_range, ty, bias, dim, map })
    }

    /// Raw logits `[n, classes]` for features `[n, dim]`.
    fn logits(&self, cpu: &Cpu, features: &[f32]) -> Vec<f32> {
        let (n, c) = (features.len() / self.dim, self.bias.len());
        let mut out = vec![0.0; n * c];
        let w = MatrixRef { ty: self.ty, rows: c, cols: self.dim, data: &self.map[self.weight.clone()] };
        cpu.matmul(w, features, &mut out, n);
        out.chunks_exact_mut(c).for_each(|row| row.iter_mut().zip(&self.bias).for_each(|(x, b)| *x += b));
        out
    }
}

/// The formula of [`Head::log_scores`] as a free function, for calibration.
pub fn join(
    logits: &[f32],
    temperature: f32,
    blend: f32,
    decision: Option<&Decision>,
    selector_classes: &[Option<usize>],
) -> Vec<f32> {
    let mut lp = vec![f32::NEG_INFINITY; selector_classes.len()];
    for expert in logits.chunks_exact(lp.len()) {
        let mut own = expert.to_vec();
        log_softmax(&mut own, temperature);
        lp.iter_mut().zip(own).for_each(|(best, own)| *best = best.max(own));
    }
    if let Some(d) = decision.filter(|_| blend > 0.0) {
        // Either the selector scores classes and knows all of them, or it scores tasks and knows none; then the
        // head's score stands alone.
        if selector_classes.iter().all(Option::is_some) {
            for (x, c) in lp.iter_mut().zip(selector_classes) {
                *x += blend * d.class_log_posterior[c.unwrap_or(0)].max(-1e4);
            }
            log_softmax(&mut lp, 1.0);
        }
    }
    lp
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Candidate, best_label};
    use conpet_formats::selector::decide;

    #[test]
    fn of_an_ensemble_the_surer_module_decides() {
        // The first is nearly sure of class 1, the second slightly prefers class 0.
        let (first, second) = ([0.0f32, 4.0, 0.0], [1.0f32, 0.0, 0.0]);
        let both = join(&[first, second].concat(), 1.0, 0.0, None, &[None; 3]);
        let (a, b) = (join(&first, 1.0, 0.0, None, &[None; 3]), join(&second, 1.0, 0.0, None, &[None; 3]));
        assert_eq!(both, [a[0].max(b[0]), a[1].max(b[1]), a[2].max(b[2])]);
        assert!(both[1] > both[0] && both[0] == b[0]);
    }

    /// Two tasks of two classes, equally likely to the selector. The first module is as sure as the
    /// second, but of a class the selector does not believe in.
    #[test]
    fn the_task_whose_experts_agree_wins() {
        let d = decide(vec![2.0, -2.0, 2.0, -2.0], &[0, 0, 1, 1], 2, 1.0, 0.0);
        let candidates: Vec<Candidate> = [(0, [0.0, 5.0]), (1, [5.0, 0.0])]
            .into_iter()
            .map(|(task, logits)| {
                let known = [Some(2 * task), Some(2 * task + 1)];
                let scores = join(&logits, 1.0, 0.5, Some(&d), &known);
                let labels = scores.into_iter().enumerate().map(|(l, p)| (task, l, p)).collect();
                Candidate { task, weight: d.task_weight[task], labels }
            })
            .collect();
        assert!((d.task_weight[0] - d.task_weight[1]).abs() < 1e-6);
        let (p, task, label) = best_label(&candidates).unwrap();
        assert_eq!((task, label), (1, 0));
        assert!(p > 0.45 && p < 0.51, "the task's half is part of it: {p}");
        // Without the selector's scores the two tasks cannot be told apart.
        assert_eq!(
            join(&[0.0, 5.0], 1.0, 0.0, Some(&d), &[None, None]),
            join(&[0.0, 5.0], 1.0, 0.5, None, &[None, None])
        );
    }
}
