//! What a method changes about plain training: the one seam of the one loop.
//!
//! A recipe may bring parameters of its own, take another loss on a batch's features, add a penalty
//! on the parameters, hold some of them still, and keep running buffers that are updated after each
//! step. Each hook does nothing unless a method says otherwise; buffers and parameters are saved in
//! the checkpoint, so a method that keeps no other state resumes to the same bits.

use crate::optim::{Held, Param};
use candle_core::{Device, Result, Tensor, Var};
use std::collections::BTreeMap;

/// Begins the names of the head's parameters.
pub const HEAD: &str = "head.";
/// Name of the head's weight `[classes, dim]` among the parameters.
pub const HEAD_WEIGHT: &str = "head.weight";
/// Name of the head's bias `[classes]`.
pub const HEAD_BIAS: &str = "head.bias";

/// Numbers that are kept beside the parameters: saved with them, but not trained.
pub type Buffers = BTreeMap<String, Vec<f32>>;
/// Gradients by name of the parameter.
pub type Gradients = BTreeMap<String, Vec<f32>>;

/// A parameter beside the module and the head.
#[derive(Debug, Clone)]
pub struct Extra {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it starts from.
    pub start: Vec<f32>,
    /// Multiplies the learning rate.
    pub lr: f32,
}

/// Labelled rows on their way from features to a loss.
#[derive(Debug)]
pub struct Labelled<'a> {
    /// Their indices within the examples.
    pub rows: &'a [usize],
    /// Their classes.
    pub classes: &'a [u32],
    /// What the head reads of them, `[rows, dim]`.
    pub features: &'a Tensor,
    /// The parameters in force.
    pub vars: &'a BTreeMap<String, Var>,
    /// The buffers before this step.
    pub buffers: &'a Buffers,
    /// The step, from 0.
    pub step: u64,
}

impl Labelled<'_> {
    /// A parameter by name.
    pub fn var(&self, name: &str) -> Result<&Tensor> {
        match self.vars.get(name) {
            Some(v) => Ok(v.as_tensor()),
            None => candle_core::bail!("there is no parameter {name}"),
        }
    }

    /// The head's logits `[rows, classes]` for features `[rows, dim]`.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        features.matmul(&self.var(HEAD_WEIGHT)?.t()?)?.broadcast_add(self.var(HEAD_BIAS)?)
    }

    /// Mean cross-entropy of logits over classes `first..`, to which all rows must belong.
    pub fn cross_entropy(&self, logits: &Tensor, first: usize) -> Result<Tensor> {
        let n = logits.dim(1)?;
        let Some(classes) = self.classes.iter().map(|c| c.checked_sub(first as u32)).collect::<Option<Vec<u32>>>()
        else {
            candle_core::bail!("a row of an earlier task in a loss over the new labels");
        };
        let classes = Tensor::from_vec(classes, self.rows.len(), &Device::Cpu)?;
        candle_nn::loss::cross_entropy(&logits.narrow(1, first, n - first)?.contiguous()?, &classes)
    }
}

/// The loss of some rows.
#[derive(Debug)]
pub struct Loss {
    /// Mean over the rows.
    pub mean: Tensor,
    /// What [`Recipe::after`] wants to know of each row, `[rows, any]`.
    pub notes: Option<Tensor>,
}

impl From<Tensor> for Loss {
    fn from(mean: Tensor) -> Self {
        Self { mean, notes: None }
    }
}

/// A step that was taken.
#[derive(Debug)]
pub struct Done<'a> {
    /// Its rows.
    pub rows: &'a [usize],
    /// What the loss noted of them, row by row.
    pub notes: &'a [f32],
    /// The parameters after it.
    pub params: &'a BTreeMap<String, Param>,
}

/// How a method departs from plain training.
pub trait Recipe: Sync {
    /// Names the recipe and its settings: a checkpoint made with another is refused.
    fn name(&self) -> String;

    /// Parameters of its own.
    fn parameters(&self) -> Vec<Extra> {
        Vec::new()
    }

    /// Buffers before the first step.
    fn buffers(&self, _params: &BTreeMap<String, Param>) -> Result<Buffers> {
        Ok(Buffers::new())
    }

    /// Numbers of a parameter that this step leaves as they are.
    fn held(&self, _name: &str, _step: u64, _steps: u64) -> Held {
        Held::None
    }

    /// What the layers see in place of a parameter; [`Recipe::gradient`] then takes the gradient back.
    fn in_force(&self, name: &str, params: &BTreeMap<String, Param>) -> Result<Var> {
        Ok(params[name].var.clone())
    }

    /// The loss of labelled rows.
    fn loss(&self, b: &Labelled<'_>) -> Result<Loss> {
        b.cross_entropy(&b.logits(b.features)?, 0).map(Loss::from)
    }

    /// Changes the batch's gradients into those of the whole objective; returns what it adds to the loss.
    fn gradient(&self, _params: &BTreeMap<String, Param>, _grads: &mut Gradients) -> Result<f32> {
        Ok(0.0)
    }

    /// Updates the buffers after a step.
    fn after(&self, _done: &Done<'_>, _buffers: &mut Buffers) -> Result<()> {
        Ok(())
    }
}

/// Cross-entropy over all labels so far, nothing else.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl Recipe for Plain {
    fn name(&self) -> String {
        "plain".into()
    }
}
