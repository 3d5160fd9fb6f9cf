//! What a conversion writes: metadata, and where each tensor comes from.

use super::checkpoint::Checkpoint;
use super::config::Config;
use conpet_formats::gguf::Writer;
use conpet_formats::{Code, Error, Result};
use std::collections::BTreeSet;

/// The base to be written.
pub(crate) struct Plan<'a> {
    /// `general.architecture`.
    pub(crate) arch: &'static str,
    /// The checkpoint's settings.
    pub(crate) config: &'a Config,
    /// Its weights.
    pub(crate) weights: &'a Checkpoint,
    /// The metadata so far.
    pub(crate) keys: Writer,
    /// What the names of the checkpoint's tensors begin with.
    pub(crate) prefix: &'static str,
    pub(super) tensors: Vec<Planned>,
    taken: BTreeSet<String>,
}

/// A tensor to be written.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(super) name: String,
    pub(super) from: From,
    /// Sizes, slowest first.
    pub(super) shape: Vec<usize>,
}

/// Where a tensor's values come from.
#[derive(Debug)]
pub(super) enum From {
    /// Values made here.
    Values(Vec<f32>),
    /// A tensor of the checkpoint with this shape.
    Tensor { name: String, shape: Vec<usize>, change: Change },
}

/// What is done to a tensor's values on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    None,
    /// One is added: the checkpoint holds a norm's weight less one.
    PlusOne,
    /// The first rows are left out.
    Skip(usize),
    /// Rows of each of so many heads go from halves to adjacent pairs: how a llama's RoPE wants them.
    Pairs(usize),
}

impl<'a> Plan<'a> {
    pub(super) fn new(arch: &'static str, config: &'a Config, weights: &'a Checkpoint) -> Self {
        let keys = Writer::new();
        Self { arch, config, weights, keys, prefix: "", tensors: Vec::new(), taken: BTreeSet::new() }
    }

    /// Finds what the names begin with: the first of `prefixes` with which there is a tensor `name`.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn find_prefix(&mut self, prefixes: &[&'static str], name: &str) -> Result<()> {
        let found = prefixes.iter().find(|p| self.weights.has(&format!("{p}{name}")));
        self.prefix = found.ok_or_else(|| {
            Error::new(Code::Missing, format!("the checkpoint lacks the tensor {}{name}", prefixes[0]))
                .hint("the checkpoint is incomplete, or of another kind than its config.json says")
        })?;
        Ok(())
    }

    /// Adds a u32 of the architecture.
    pub(crate) fn u32(&mut self, key: &str, v: usize) {
        self.keys.u32(&format!("{}.{key}", self.arch), v as u32);
    }

    /// Adds a float of the architecture.
    pub(crate) fn f32(&mut self, key: &str, v: f64) {
        self.keys.f32(&format!("{}.{key}", self.arch), v as f32);
    }

    /// Adds a bool of the architecture.
    pub(crate) fn bool(&mut self, key: &str, v: bool) {
        self.keys.bool(&format!("{}.{key}", self.arch), v);
    }

    /// Adds a text of the architecture.
    pub(crate) fn str(&mut self, key: &str, v: &str) {
        self.keys.str(&format!("{}.{key}", self.arch), v);
    }

    /// Plans tensor `name` from the checkpoint's `from`, which has the prefix and this shape, slowest size first.
    pub(crate) fn tensor(
        &mut self,
        name: impl Into<String>,
        from: &str,
        shape: &[usize],
        change: Change,
    ) -> Result<()> {
        let whole = format!("{}{from}", self.prefix);
        self.weights.matrix(&whole, shape)?;
        let mut out = shape.to_vec();
        if let Change::Skip(rows) = change {
            out[0] = out[0].checked_sub(rows).filter(|n| *n > 0).ok_or_else(|| {
                Error::new(Code::Shape, format!("{} rows, of which the first {rows} are never used", shape[0]))
                    .in_section(format!("tensor {whole}"))
            })?;
        }
        self.taken.insert(whole.clone());
        let from = From::Tensor { name: whole, shape: shape.to_vec(), change };
        self.tensors.push(Planned { name: name.into(), from, shape: out });
        Ok(())
    }

    /// As [`Plan::tensor`], without a change.
    pub(crate) fn same(&mut self, name: impl Into<String>, from: &str, shape: &[usize]) -> Result<()> {
        self.tensor(name, from, shape, Change::None)
    }

    /// Plans a vector that is computed here.
    pub(crate) fn values(&mut self, name: &str, values: Vec<f32>) {
        let shape = vec![values.len()];
        self.tensors.push(Planned { name: name.to_owned(), from: From::Values(values), shape });
    }

    /// Marks a tensor of the checkpoint as known and not needed; its name is given whole.
    pub(crate) fn pass_over(&mut self, name: &str) {
        self.taken.insert(name.to_owned());
    }

    /// Marks all tensors as not needed whose names, without the prefix, fit.
    pub(crate) fn pass_over_if(&mut self, fits: impl Fn(&str) -> bool) {
        let bare = |n: &'a str| n.strip_prefix(self.prefix).unwrap_or(n);
        let names: Vec<String> = self.weights.names().filter(|n| fits(bare(n))).map(String::from).collect();
        self.taken.extend(names);
    }

    /// Refuses a checkpoint with a tensor or key that nothing was made of.
    pub(super) fn check(&self) -> Result<()> {
        self.config.all_read()?;
        match self.weights.names().find(|n| !self.taken.contains(*n)) {
            None => Ok(()),
            Some(name) => Err(Error::new(Code::Unsupported, format!("a {} checkpoint has no such tensor", self.arch))
                .in_file(self.weights.file_of(name))
                .in_section(format!("tensor {}", name.escape_debug()))
                .hint("it may change what the model computes; take a checkpoint without it")),
        }
    }
}
