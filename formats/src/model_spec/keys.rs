//! The metadata of one architecture, read key by key. A key that nobody has read is refused at the end.

use super::{Activation, Attention, Linear, ModelSpec, Norm, Rope, RopeKind};
use crate::gguf::{Gguf, Value};
use crate::{Code, Error, Result};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Keys that may be there and change nothing of what is computed.
const WITHOUT_EFFECT: &[&str] = &[
    // The embedding table says how many rows it has.
    "vocab_size",
    // How the checkpoint was laid out before it was converted.
    "tensor_data_layout",
    // Only a RoPE scaling, which is refused, would read these two.
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    // How llama.cpp pools states into an embedding; a feature says here how it pools.
    "pooling_type",
];

/// The metadata of one architecture: every key begins with its name.
pub(super) struct Keys<'a> {
    gguf: &'a Gguf<'a>,
    arch: &'a str,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(gguf: &'a Gguf<'a>, arch: &'a str) -> Self {
        Self { gguf, arch, read: RefCell::default() }
    }

    /// The full name of a key, which counts as read from now on.
    pub(super) fn name(&self, key: &str) -> String {
        let name = format!("{}.{key}", self.arch);
        self.read.borrow_mut().insert(name.clone());
        name
    }

    pub(super) fn opt(&self, key: &str) -> Result<Option<usize>> {
        Ok(self.gguf.u32(&self.name(key))?.map(|v| v as usize))
    }

    pub(super) fn num(&self, key: &str) -> Result<usize> {
        Ok(self.gguf.required_u32(&self.name(key))? as usize)
    }

    pub(super) fn float(&self, key: &str) -> Result<Option<f32>> {
        self.gguf.f32(&self.name(key))
    }

    /// A number that may also be given once for each layer, if it is the same in all.
    fn same_in_layers(&self, key: &str, n_layer: usize) -> Result<Option<usize>> {
        let name = self.name(key);
        let Some(Value::Array(all)) = self.gguf.get(&name) else { return self.opt(key) };
        let values: Vec<i32> = all.i32s().map_err(|e| e.in_section(format!("key {name}")))?.collect();
        let wrong = |code, what: String| Err(Error::new(code, what).in_section(format!("key {name}")));
        if values.len() != n_layer {
            return wrong(Code::Type, format!("an array of {} for {n_layer} layers", values.len()));
        }
        match values.first().map(|v| usize::try_from(*v)) {
            Some(Ok(first)) if values.iter().all(|v| Some(v) == values.first()) => Ok(Some(first)),
            Some(Ok(_)) => wrong(Code::Unsupported, "layers of different shapes are not supported".into()),
            _ => wrong(Code::Value, "a negative number, or none".into()),
        }
    }

    /// Refuses a key unless it is absent or has the one value that is supported.
    pub(super) fn only(&self, key: &str, supported: f64, hint: &str) -> Result<()> {
        let name = self.name(key);
        let is = match self.gguf.get(&name) {
            Some(Value::Bool(b)) => Some(f64::from(u8::from(b))),
            Some(Value::F32(_) | Value::F64(_)) => self.gguf.f32(&name)?.map(f64::from),
            _ => self.gguf.u32(&name)?.map(f64::from),
        };
        match is.filter(|v| *v != supported) {
            Some(v) => {
                Err(Error::new(Code::Unsupported, format!("{name} is {v}, only {supported} is supported")).hint(hint))
            }
            None => Ok(()),
        }
    }

    /// Refuses every way to stretch RoPE. What llama.cpp reads without a type is a linear scaling.
    fn no_rope_scaling(&self) -> Result<()> {
        let hint = format!("use a base without {}.rope.scaling.*, or with the type none", self.arch);
        let kind = self.gguf.str(&self.name("rope.scaling.type"))?;
        if let Some(kind) = kind.filter(|k| *k != "none") {
            return Err(Error::new(Code::Unsupported, format!("RoPE scaling {kind:?} is not supported")).hint(hint));
        }
        for key in ["rope.scaling.factor", "rope.scale_linear"] {
            // llama.cpp takes 0 for absent.
            let stretches = self.float(key)?.is_some_and(|v| v != 0.0);
            if kind.is_none() && stretches {
                self.only(key, 1.0, &hint)?;
            }
        }
        self.only("rope.scaling.attn_factor", 1.0, &hint)
    }

    /// The linears among these that have a bias.
    pub(super) fn biases(&self, of: &[Linear]) -> Vec<Linear> {
        of.iter().copied().filter(|l| self.gguf.tensor(&l.bias(0)).is_some()).collect()
    }

    /// What every family says alike, the rest as llama has it; not checked yet.
    pub(super) fn common(&self) -> Result<ModelSpec> {
        self.no_rope_scaling()?;
        self.only("attention.causal", 1.0, "this release runs decoders only")?;
        let in_metadata = |what: String| Error::new(Code::Value, what).in_section("metadata");
        let n_layer = self.num("block_count")?;
        let same = |key: &str| self.same_in_layers(key, n_layer)?.map_or_else(|| self.num(key), Ok);
        let (hidden, n_head) = (self.num("embedding_length")?, same("attention.head_count")?);
        if n_head == 0 {
            return Err(in_metadata(format!("{} is 0", self.name("attention.head_count"))));
        }
        let head_dim = match self.opt("attention.key_length")? {
            Some(d) => d,
            None if hidden % n_head == 0 => hidden / n_head,
            None => {
                return Err(in_metadata(format!("embedding_length {hidden} is not a multiple of head_count {n_head}")));
            }
        };
        if self.opt("attention.value_length")?.is_some_and(|v| v != head_dim) {
            return Err(Error::new(Code::Unsupported, "keys and values of different widths are not supported")
                .in_section(self.name("attention.value_length"))
                .hint("convert the file again, or take another base"));
        }
        let table = self.gguf.tensor(super::EMBEDDING);
        let table = table.ok_or_else(|| Error::new(Code::Missing, format!("no tensor {}", super::EMBEDDING)))?;
        Ok(ModelSpec {
            arch: self.arch.to_owned(),
            name: self.gguf.str("general.name")?.unwrap_or(self.arch).to_owned(),
            n_layer,
            hidden,
            n_head,
            n_kv_head: self.same_in_layers("attention.head_count_kv", n_layer)?.unwrap_or(n_head),
            head_dim,
            ffn: same("feed_forward_length")?,
            vocab: usize::try_from(table.rows()).unwrap_or(usize::MAX),
            context: self.num("context_length")?,
            norm_eps: self.gguf.required_f32(&self.name("attention.layer_norm_rms_epsilon"))?,
            tied: self.gguf.tensor(super::OUTPUT).is_none(),
            embedding_scale: 1.0,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            activation: Activation::Silu,
            norms: &[Norm::Attn, Norm::Ffn],
            biases: Vec::new(),
            ropes: vec![Rope {
                kind: RopeKind::Adjacent,
                base: self.float("rope.freq_base")?.unwrap_or(10_000.0),
                dim: self.opt("rope.dimension_count")?.unwrap_or(head_dim),
            }],
            attention: vec![Attention { window: None, rope: 0 }],
        })
    }

    /// Refuses a key of this architecture that nobody has read.
    pub(super) fn all_read(&self) -> Result<()> {
        let own = |key: &'a str| key.strip_prefix(self.arch)?.strip_prefix('.');
        let read = self.read.borrow();
        let known = |key: &str, own: &str| read.contains(key) || WITHOUT_EFFECT.contains(&own);
        match self.gguf.metadata().find(|(key, _)| own(key).is_some_and(|o| !known(key, o))) {
            None => Ok(()),
            Some((key, _)) => Err(Error::new(Code::Unsupported, format!("the key {key} is not known"))
                .in_section("metadata")
                .hint("it may change what the model computes, so the base is not run; take one without this key")),
        }
    }
}
