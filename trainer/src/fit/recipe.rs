//! A recipe: what a method changes about plain training.
//!
//! A recipe may add parameters, replace the loss on a batch's features, add a penalty on the parameters, freeze
//! some of them, and keep buffers that are updated after each step. By default a hook does nothing. Buffers and
//! parameters are saved in the checkpoint, so a method that keeps no other state resumes to the same bits.

use crate::optim::{Held, Param};
use candle_core::{Device, Result, Tensor, Var};
use std::collections::BTreeMap;

/// Prefix of the names of the head's parameters.
pub const HEAD: &str = "head.";
/// Name of the head's weight `[classes, dim]` among the parameters.
pub const HEAD_WEIGHT: &str = "head.weight";
/// Name of the head's bias `[classes]`.
pub const HEAD_BIAS: &str = "head.bias";

/// Values that are saved with the parameters but not trained, by name.
pub type Buffers = BTreeMap<String, Vec<f32>>;
/// Gradients by name of the parameter.
pub type Gradients = BTreeMap<String, Vec<f32>>;

/// A parameter beside the module and the head.
#[derive(Debug, Clone)]
pub struct Extra {
    /// Name of the parameter.
    pub name: String,
    /// Shape of the parameter.
    pub shape: Vec<usize>,
    /// Its initial values.
    pub start: Vec<f32>,
    /// Factor on the learning rate.
    pub lr: f32,
}

/// Labelled rows of a batch, from which a recipe computes its loss.
#[derive(Debug)]
pub struct Labelled<'a> {
    /// Indices of the rows within the examples.
    pub rows: &'a [usize],
    /// Classes of the rows.
    pub classes: &'a [u32],
    /// The head's features of the rows, `[rows, dim]`.
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

    /// Mean cross-entropy of logits over the classes `first..`, to which all rows must belong.
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
    /// Values for each row that [`Recipe::after`] needs, `[rows, any]`.
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
    /// The rows of the step.
    pub rows: &'a [usize],
    /// [`Loss::notes`], row by row.
    pub notes: &'a [f32],
    /// The parameters after the step.
    pub params: &'a BTreeMap<String, Param>,
}

/// How a method departs from plain training.
pub trait Recipe: Sync {
    /// Names the recipe and its settings; a checkpoint made with others cannot be resumed.
    fn name(&self) -> String;

    /// Parameters that the recipe adds.
    fn parameters(&self) -> Vec<Extra> {
        Vec::new()
    }

    /// Buffers before the first step.
    fn buffers(&self, _params: &BTreeMap<String, Param>) -> Result<Buffers> {
        Ok(Buffers::new())
    }

    /// The values of a parameter that this step does not change.
    fn held(&self, _name: &str, _step: u64, _steps: u64) -> Held {
        Held::None
    }

    /// The value that the layers use in place of a parameter; [`Recipe::gradient`] must then transform its
    /// gradient back.
    fn in_force(&self, name: &str, params: &BTreeMap<String, Param>) -> Result<Var> {
        Ok(params[name].var.clone())
    }

    /// The loss of labelled rows.
    fn loss(&self, b: &Labelled<'_>) -> Result<Loss> {
        b.cross_entropy(&b.logits(b.features)?, 0).map(Loss::from)
    }

    /// Turns the batch's gradients into those of the whole objective; returns the penalty that it adds to the loss.
    fn gradient(&self, _params: &BTreeMap<String, Param>, _grads: &mut Gradients) -> Result<f32> {
        Ok(0.0)
    }

    /// Updates the buffers after a step.
    fn after(&self, _done: &Done<'_>, _buffers: &mut Buffers) -> Result<()> {
        Ok(())
    }
}

/// Plain training: cross-entropy over all labels so far.
#[derive(Debug, Clone, Copy)]
pub struct Plain;

impl Recipe for Plain {
    fn name(&self) -> String {
        "plain".into()
    }
}
