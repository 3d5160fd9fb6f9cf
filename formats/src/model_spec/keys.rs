//! The metadata of one architecture, read key by key. A key that nobody has read is refused at the end.

use super::layer::bias;
use super::rope::Yarn;
use super::{
    Activation, Attention, Embedding, Fused, Linear, ModelSpec, Norm, NormKind, Output, Pooling, Rope, RopeKind,
};
use crate::gguf::{Gguf, TensorType, Value};
use crate::quant::QuantType;
use crate::{Code, Error, Result, quant};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Keys that may be there and change nothing of what is computed.
const WITHOUT_EFFECT: &[&str] = &[
    // The embedding table says how many rows it has.
    "vocab_size",
    // How the checkpoint was laid out before it was converted.
    "tensor_data_layout",
    // Where the stretched contexts came from; only some ways to stretch read it.
    "rope.scaling.original_context_length",
    // Whether the base was trained on the stretched context.
    "rope.scaling.finetuned",
];

/// The tensor of the factors that Llama 3 slows its rotary embedding by.
const FREQUENCIES: &str = "rope_freqs.weight";

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

    pub(super) fn required_float(&self, key: &str) -> Result<f32> {
        self.gguf.required_f32(&self.name(key))
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.gguf.bool(&self.name(key))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.gguf.str(&self.name(key))
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

    /// Refuses a key that a family cannot have.
    pub(super) fn absent(&self, key: &str, hint: &str) -> Result<()> {
        let name = self.name(key);
        match self.gguf.get(&name) {
            None => Ok(()),
            Some(_) => Err(Error::new(Code::Unsupported, format!("{name} has no meaning here")).hint(hint)),
        }
    }

    /// A number that is not 0, which llama.cpp takes for absent.
    fn factor(&self, key: &str) -> Result<Option<f32>> {
        Ok(self.float(key)?.filter(|v| *v != 0.0))
    }

    /// The rotary embedding of the layers that see everything: plain, or stretched as the file says. Without a
    /// type, a factor slows all pairs alike. `tables` notes the tensors that were read.
    pub(super) fn rope(&self, plain: Rope, context: usize, tables: &mut Vec<&'static str>) -> Result<Rope> {
        let kind = self.text("rope.scaling.type")?.unwrap_or("linear");
        let factors = [self.factor("rope.scaling.factor")?, self.factor("rope.scale_linear")?];
        let factor = f64::from(factors.into_iter().flatten().next().unwrap_or(1.0));
        if !(factor >= 1.0) {
            return Err(Error::new(Code::Value, format!("a RoPE scaling by {factor} is not 1 or more"))
                .in_section(format!("key {}.rope.scaling.factor", self.arch)));
        }
        for key in ["rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor"] {
            self.only(key, 1.0, "use a base without this key")?;
        }
        self.only("rope.scaling.yarn_log_multiplier", 0.0, "use a base without this key")?;
        let [fast, slow] = ["rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"].map(|k| self.float(k));
        let (fast, slow) = (fast?.unwrap_or(32.0), slow?.unwrap_or(1.0));
        let rope = match kind {
            "none" => plain,
            "linear" if factor == 1.0 => plain,
            "linear" => plain.slowed(factor),
            "yarn" => plain.yarn(Yarn {
                factor,
                original: self.opt("rope.scaling.original_context_length")?.unwrap_or(context),
                beta_fast: f64::from(fast),
                beta_slow: f64::from(slow),
            }),
            other => {
                return Err(Error::new(Code::Unsupported, format!("RoPE scaling {other:?} is not supported here"))
                    .in_section(format!("key {}.rope.scaling.type", self.arch))
                    .hint("use a base whose scaling is none, linear or yarn"));
            }
        };
        let rope = match self.float("rope.scaling.attn_factor")? {
            Some(by) if by != 1.0 => rope.grown(by),
            _ => rope,
        };
        match self.factors(FREQUENCIES, rope.dim)? {
            None => Ok(rope),
            Some(by) => {
                tables.push(FREQUENCIES);
                Ok(rope.slowed_by(&by))
            }
        }
    }

    /// The factors `[dim / 2]` that a tensor gives to the pairs of a rotary embedding.
    pub(super) fn factors(&self, name: &str, dim: usize) -> Result<Option<Vec<f32>>> {
        let Some(t) = self.gguf.tensor(name) else { return Ok(None) };
        let wrong = |code, what: String| Err(Error::new(code, what).in_section(format!("tensor {name}")));
        if t.ty != TensorType::Known(QuantType::F32) {
            return wrong(Code::Type, format!("factors of type {}, only F32 is supported", t.ty));
        }
        if t.cols() != dim as u64 / 2 || t.rows() != 1 {
            return wrong(Code::Shape, format!("{} factors for {} pairs", t.cols() * t.rows(), dim / 2));
        }
        let mut out = vec![0.0; dim / 2];
        quant::dequantize(QuantType::F32, self.gguf.data(t), &mut out);
        match out.iter().find(|v| !(v.is_finite() && **v > 0.0)) {
            Some(v) => wrong(Code::Value, format!("a factor {v} is not a positive number")),
            None => Ok(Some(out)),
        }
    }

    /// Which layers, in turn, see a window only: the file's own pattern, or all but the last of every `period`.
    ///
    /// # Errors
    /// If the pattern is neither a period nor one flag for each layer.
    pub(super) fn windowed(&self, n_layer: usize, period: usize) -> Result<Vec<bool>> {
        let name = self.name("attention.sliding_window_pattern");
        let periodic = |n: usize| (0..n.max(1)).map(|l| l + 1 < n || n == 0).collect();
        match self.gguf.get(&name) {
            None => Ok(periodic(period)),
            Some(Value::Array(flags)) => {
                let flags: Vec<bool> = flags.bools().map_err(|e| e.in_section(format!("key {name}")))?.collect();
                if flags.len() == n_layer {
                    return Ok(flags);
                }
                Err(Error::new(Code::Type, format!("an array of {} for {n_layer} layers", flags.len()))
                    .in_section(format!("key {name}")))
            }
            Some(_) => match self.num("attention.sliding_window_pattern")? {
                n if n <= n_layer.max(64) => Ok(periodic(n)),
                n => Err(Error::new(Code::Value, format!("a pattern of {n} layers")).in_section(format!("key {name}"))),
            },
        }
    }

    /// How an encoder pools its last states.
    pub(super) fn pooling(&self) -> Result<Option<Pooling>> {
        Ok(match self.opt("pooling_type")? {
            None | Some(0) => None,
            Some(1) => Some(Pooling::Mean),
            Some(2) => Some(Pooling::First),
            Some(3) => Some(Pooling::Last),
            Some(n) => {
                return Err(Error::new(Code::Unsupported, format!("{} is {n}", self.name("pooling_type")))
                    .hint("0 (none), 1 (mean), 2 (first) and 3 (last) are supported; a reranker (4) is not"));
            }
        })
    }

    /// The linears that have a bias.
    pub(super) fn biases(&self, fused: &[Fused]) -> Vec<Linear> {
        let has = |l: &Linear| {
            let name = fused.iter().find(|f| f.linears.contains(l)).map_or(l.name(), |f| f.name);
            self.gguf.tensor(&bias(0, name)).is_some()
        };
        Linear::ALL.into_iter().filter(has).collect()
    }

    /// Linears of which the file has one tensor instead of several.
    pub(super) fn fused(&self, fused: &[Fused]) -> Vec<Fused> {
        let has = |f: &Fused| {
            let alone =
                |l: &Linear| f.name != l.name() && self.gguf.tensor(&super::layer::weight(0, l.name())).is_some();
            self.gguf.tensor(&super::layer::weight(0, f.name)).is_some() && !f.linears.iter().any(alone)
        };
        fused.iter().copied().filter(has).collect()
    }

    /// What every family says alike, the rest as llama has it; not checked yet.
    pub(super) fn common(&self, kind: RopeKind) -> Result<ModelSpec> {
        for key in ["expert_count", "expert_used_count"] {
            self.only(key, 0.0, "a mixture of experts cannot be run; take a dense base")?;
        }
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
        let base = self.float("rope.freq_base")?.unwrap_or(10_000.0);
        // Bounded before anything is made of it.
        let dim = self.opt("rope.dimension_count")?.unwrap_or(head_dim).min(1 << 16);
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
            causal: true,
            norm_kind: NormKind::Rms,
            norm_eps: 0.0,
            embedding: Embedding { scale: 1.0, positions: false, types: 0, norm: false },
            residual_scale: 1.0,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            attention_cap: None,
            activation: Activation::Silu,
            gated: true,
            norms: &[Norm::Attn, Norm::Ffn],
            whole_qk_norm: false,
            biases: Vec::new(),
            fused: self.fused(&[Fused::QKV]),
            ropes: vec![Rope::new(kind, base, dim)],
            longer: None,
            attention: vec![Attention { window: None, rope: Some(0) }],
            output: Output { norm: true, tied: self.gguf.tensor(super::OUTPUT).is_none(), scale: 1.0, cap: None },
            pooling: None,
            tables: Vec::new(),
        })
    }

    /// What decoders say alike: RMSNorm, and a rotary embedding that may be stretched.
    pub(super) fn decoder(&self, common: ModelSpec) -> Result<ModelSpec> {
        let mut spec = self.causal(common)?;
        spec.ropes = vec![self.rope(spec.ropes.remove(0), spec.context, &mut spec.tables)?];
        Ok(spec)
    }

    /// [`Keys::decoder`], but for the rotary embedding.
    pub(super) fn causal(&self, common: ModelSpec) -> Result<ModelSpec> {
        self.only("attention.causal", 1.0, "this family is run as a decoder")?;
        // How llama.cpp pools a decoder's states into an embedding; a feature says here how it pools.
        self.name("pooling_type");
        Ok(ModelSpec { norm_eps: self.required_float("attention.layer_norm_rms_epsilon")?, ..common })
    }

    /// What encoders say alike: [`Keys::common`], with full attention, LayerNorm with biases after each sum,
    /// and no output head.
    pub(super) fn encoder(&self) -> Result<ModelSpec> {
        let common = self.common(RopeKind::Halves)?;
        self.only("attention.causal", 0.0, "this family is run as an encoder")?;
        let types = self.gguf.tensor(super::TOKEN_TYPES).map_or(0, |t| t.rows());
        Ok(ModelSpec {
            causal: false,
            norm_kind: NormKind::Layer,
            norm_eps: self.required_float("attention.layer_norm_epsilon")?,
            embedding: Embedding {
                norm: true,
                types: usize::try_from(types).unwrap_or(usize::MAX),
                ..common.embedding
            },
            norms: &[Norm::AttnSum, Norm::FfnSum],
            biases: self.biases(&common.fused),
            output: Output { norm: false, tied: true, ..common.output },
            pooling: self.pooling()?,
            ..common
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
