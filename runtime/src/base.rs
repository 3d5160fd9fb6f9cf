//! A frozen base in memory: mapped GGUF files and the location of each weight in them.
//!
//! Linear weights and the embedding are used where they lie in the map; only the norms (a few hundred KiB) are
//! copied, because they are read as `f32` whatever the file stores.

use crate::budget::Budget;
use crate::chat::ChatTemplate;
use crate::error::{Code, Error, Result};
use crate::kernels::MatrixRef;
use crate::norm::NormRef;
use crate::tokenizer::Tokenizer;
use conpet_formats::gguf::{Gguf, Shards, TensorInfo, TensorType};
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::{self, ModelSpec, Norm};
use conpet_formats::quant::{self, QuantType};
use std::ops::Range;
use std::path::Path;

pub use conpet_formats::model_spec::Linear;

/// A frozen quantized model.
#[derive(Debug)]
pub struct Base {
    files: Shards,
    /// The shape of the model.
    pub spec: ModelSpec,
    /// The GGUF's tokenizer.
    pub tokenizer: Tokenizer,
    layers: Vec<Layer>,
    embedding: Weight,
    positions: Option<Weight>,
    /// The row of the token type that every token has, `[hidden]`.
    token_type: Option<Vec<f32>>,
    embedding_norm: Option<Vectors>,
    output_norm: Option<Vectors>,
    output: Option<Weight>,
    budget: Option<Budget>,
}

/// Where a matrix `[rows, cols]` lies in the mapped files.
#[derive(Debug, Clone, Copy)]
struct Weight {
    ty: QuantType,
    rows: usize,
    cols: usize,
    file: usize,
    start: usize,
    len: usize,
}

/// A norm's weight, and its bias (empty if it has none).
type Vectors = [Vec<f32>; 2];

impl Weight {
    /// Some of its rows.
    fn rows(self, rows: Range<usize>) -> Self {
        let row = self.len / self.rows.max(1);
        Self { rows: rows.len(), start: self.start + rows.start * row, len: rows.len() * row, ..self }
    }
}

#[derive(Debug)]
struct Layer {
    /// Indexed by [`Norm`].
    norms: [Option<Vectors>; Norm::ALL.len()],
    /// Indexed by [`Linear`].
    linears: [Option<Weight>; 7],
    biases: [Option<Vec<f32>>; 7],
}

/// The weights of one layer, borrowed from the map. Linears are `[out, in]`.
#[derive(Debug, Clone, Copy)]
pub struct LayerRef<'a> {
    base: &'a Base,
    layer: &'a Layer,
}

impl<'a> LayerRef<'a> {
    /// The weight `[out, in]` of one linear.
    ///
    /// # Panics
    /// If bases of this family do not have it.
    pub fn linear(&self, which: Linear) -> MatrixRef<'a> {
        self.base.matrix(self.layer.linears[which as usize].expect("a layer has the linears of its spec"))
    }

    /// The bias `[out]` of one linear, in families that have one.
    pub fn bias(&self, which: Linear) -> Option<&'a [f32]> {
        self.layer.biases[which as usize].as_deref()
    }

    /// A norm, in families that have it.
    pub fn norm(&self, which: Norm) -> Option<NormRef<'a>> {
        self.layer.norms[which as usize].as_ref().map(|v| self.base.norm(v))
    }
}

impl Base {
    /// Maps a GGUF, with its other shards if it is one of several, and locates every weight. No weight is read in
    /// advance.
    ///
    /// # Errors
    /// If the file is not a strict GGUF, a shard is missing, its architecture or a tensor type is unsupported, or a
    /// tensor is missing, has another shape than the metadata demands, or is not one that the
    /// architecture has.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_files(Shards::open(path)?).map_err(|e| e.in_file(path))
    }

    /// As [`Base::open`], from bytes already in memory or mapped; `path` only names them in messages.
    pub fn from_map(map: Mapped, path: &Path) -> Result<Self> {
        Self::from_files(Shards::of(map, path)?)
    }

    fn from_files(files: Shards) -> Result<Self> {
        let gguf = files.gguf()?;
        let spec = ModelSpec::from_gguf(&gguf)?;
        let weight = |name: &str, rows: usize, cols: usize| find(&gguf, name, rows, cols);
        let vector = |name: &str, width: usize| -> Result<Vec<f32>> {
            let w = find(&gguf, name, 1, width)?;
            let mut v = vec![0.0; width];
            quant::dequantize(w.ty, &files.map(w.file)[w.start..w.start + w.len], &mut v);
            match v.iter().position(|x| !x.is_finite()) {
                None => Ok(v),
                Some(i) => Err(Error::new(Code::NotFinite, format!("element {i} is not finite")).in_section(name)),
            }
        };
        let norm = |stem: &str, width: usize| -> Result<Vectors> {
            let mut out = Vectors::default();
            for (out, name) in out.iter_mut().zip(spec.norm_names(stem)) {
                *out = vector(&name, width)?;
            }
            Ok(out)
        };
        let mut layers = Vec::with_capacity(spec.n_layer);
        for l in 0..spec.n_layer {
            let mut layer = Layer { norms: Default::default(), linears: [None; 7], biases: Default::default() };
            for linear in spec.linears() {
                let ((name, row), (out, input)) = (spec.weight_name(l, linear), spec.shape(linear));
                layer.linears[linear as usize] =
                    Some(weight(&name, spec.rows_of_tensor(linear), input)?.rows(row..row + out));
            }
            for linear in &spec.biases {
                let ((name, row), out) = (spec.bias_name(l, *linear), spec.shape(*linear).0);
                let all = vector(&name, spec.rows_of_tensor(*linear))?;
                layer.biases[*linear as usize] = Some(all[row..row + out].to_vec());
            }
            for which in spec.norms {
                let stem = format!("blk.{l}.{}", which.name());
                layer.norms[*which as usize] = Some(norm(&stem, spec.norm_width(*which))?);
            }
            layers.push(layer);
        }
        let h = spec.hidden;
        let embedding = weight(model_spec::EMBEDDING, spec.vocab, h)?;
        let positions = spec.embedding.positions.then(|| weight(model_spec::POSITIONS, spec.context, h)).transpose()?;
        let types = Some(spec.embedding.types).filter(|n| *n > 0);
        let token_type = types.map(|n| first_row(&files, weight(model_spec::TOKEN_TYPES, n, h)?)).transpose()?;
        let embedding_norm = spec.embedding.norm.then(|| norm(model_spec::EMBEDDING_NORM, h)).transpose()?;
        let output_norm = spec.output.norm.then(|| norm(model_spec::OUTPUT_NORM, h)).transpose()?;
        let output = match (spec.causal, spec.output.tied) {
            (false, _) => None,
            (true, true) => Some(embedding),
            (true, false) => Some(weight(model_spec::OUTPUT, spec.vocab, h)?),
        };
        spec.check_tensors(&gguf)?;
        let tokenizer = Tokenizer::from_gguf(&gguf, files.map(0).clone())?;
        if tokenizer.n_vocab() > spec.vocab {
            return Err(Error::new(
                Code::Shape,
                format!("{} tokens, but token_embd.weight has {} rows", tokenizer.n_vocab(), spec.vocab),
            )
            .in_section("tokenizer.ggml.tokens"));
        }
        Ok(Self {
            spec,
            tokenizer,
            layers,
            embedding,
            positions,
            token_type,
            embedding_norm,
            output_norm,
            output,
            files,
            budget: None,
        })
    }

    /// Makes ready for contexts of so many tokens, which may be more than the base's own:
    /// [`ModelSpec::for_context`]. True if its rotary embeddings are others now.
    pub fn extend_context(&mut self, tokens: usize) -> bool {
        let spec = self.spec.clone().for_context(tokens);
        std::mem::replace(&mut self.spec, spec).ropes != self.spec.ropes
    }

    /// Keeps at most `bytes` of weights in memory; the rest is read from the file in every pass.
    ///
    /// # Errors
    /// If `bytes` is less than the largest layer, or the output head.
    pub fn limit_memory(&mut self, bytes: usize) -> Result<()> {
        let place = |w: &Weight| (self.files.map(w.file).clone(), w.start..w.start + w.len);
        let layers = self.layers.iter().map(|l| l.linears.iter().flatten().map(place).collect());
        let parts = layers.chain([self.output.iter().map(place).collect()]).collect();
        self.budget = Some(Budget::new(parts, bytes).map_err(|e| e.in_file(self.path()))?);
        Ok(())
    }

    /// Fails if a file is not what it was when it was opened: cut short, unreadable, or written to.
    /// Unlike a bundle, a base has no reason to change, and no digests that are cheap to compare.
    ///
    /// # Errors
    /// `E_CHANGED`.
    pub fn check(&self) -> Result<()> {
        self.files.check()
    }

    /// Notes that a pass is done with a layer, so that its weights may leave memory. The output head counts as
    /// the layer after the last.
    pub(crate) fn used(&self, layer: usize) {
        if let Some(b) = &self.budget {
            b.used(layer);
        }
    }

    /// One layer's weights.
    ///
    /// # Panics
    /// If `layer >= spec.n_layer`.
    pub fn layer(&self, layer: usize) -> LayerRef<'_> {
        LayerRef { base: self, layer: &self.layers[layer] }
    }

    /// The embedding table `[vocab, hidden]`.
    pub fn embedding(&self) -> MatrixRef<'_> {
        self.matrix(self.embedding)
    }

    /// The learned positions `[context, hidden]`, in families that have them.
    pub fn positions(&self) -> Option<MatrixRef<'_>> {
        self.positions.map(|w| self.matrix(w))
    }

    /// What is added to every embedding for its token type, `[hidden]`, in families that have types.
    pub fn token_type(&self) -> Option<&[f32]> {
        self.token_type.as_deref()
    }

    /// The norm of embeddings, in families that have one.
    pub fn embedding_norm(&self) -> Option<NormRef<'_>> {
        self.embedding_norm.as_ref().map(|v| self.norm(v))
    }

    /// The output head `[vocab, hidden]`; the embedding table where they are tied.
    ///
    /// # Panics
    /// If the base is an encoder, which has none.
    pub fn output(&self) -> MatrixRef<'_> {
        self.matrix(self.output.expect("only decoders predict tokens"))
    }

    /// The final norm; encoders whose layers end with a norm have none.
    pub fn output_norm(&self) -> Option<NormRef<'_>> {
        self.output_norm.as_ref().map(|v| self.norm(v))
    }

    fn norm<'a>(&self, [weight, bias]: &'a Vectors) -> NormRef<'a> {
        NormRef { kind: self.spec.norm_kind, eps: self.spec.norm_eps, weight, bias }
    }

    /// The mapped files.
    pub fn files(&self) -> &Shards {
        &self.files
    }

    /// The files parsed as GGUF again (cheap: nothing is copied).
    pub fn gguf(&self) -> Result<Gguf<'_>> {
        self.files.gguf()
    }

    /// The chat template of the GGUF, if it has one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        ChatTemplate::from_gguf(&self.gguf()?).map_err(|e| e.in_file(self.path()))
    }

    /// The path of the file, the first if there are several.
    pub fn path(&self) -> &Path {
        self.files.path()
    }

    /// Bytes of weights one token reads when decoding: all linears and the output head.
    pub fn bytes_per_token(&self) -> usize {
        let linears = self.layers.iter().flat_map(|l| l.linears.iter().flatten());
        linears.chain(&self.output).map(|w| w.len).sum()
    }

    /// Name of the most common quant type among the linears, for display.
    pub fn quant_name(&self) -> &'static str {
        self.layer(0).linear(Linear::Down).ty.name()
    }

    fn matrix(&self, w: Weight) -> MatrixRef<'_> {
        MatrixRef { ty: w.ty, rows: w.rows, cols: w.cols, data: &self.files.map(w.file)[w.start..w.start + w.len] }
    }
}

/// The first row of a matrix as floats.
fn first_row(files: &Shards, w: Weight) -> Result<Vec<f32>> {
    let mut out = vec![0.0; w.cols];
    let row = w.rows(0..1);
    quant::dequantize(row.ty, &files.map(row.file)[row.start..row.start + row.len], &mut out);
    Ok(out)
}

/// Finds a tensor and checks that it is `[rows, cols]` of a type that can be run.
fn find(gguf: &Gguf<'_>, name: &str, rows: usize, cols: usize) -> Result<Weight> {
    let info: &TensorInfo<'_> = gguf.tensor(name).ok_or_else(|| {
        Error::new(Code::Missing, "the base lacks this tensor")
            .in_section(format!("tensor {name}"))
            .hint("the file is not a complete model; convert or download it again")
    })?;
    let section = || format!("tensor {name}");
    let TensorType::Known(ty) = info.ty else {
        return Err(Error::new(Code::Type, format!("tensor type {} cannot be run", info.ty))
            .in_section(section())
            .hint(format!("this release runs {}", QuantType::names())));
    };
    if info.rows() != rows as u64 || info.cols() != cols as u64 {
        return Err(Error::new(
            Code::Shape,
            format!("shape [{}, {}] where the metadata demands [{rows}, {cols}]", info.rows(), info.cols()),
        )
        .in_section(section()));
    }
    // The parser has proved offset + len <= file length, so both fit usize.
    let (start, len) = (info.offset as usize, info.len as usize);
    Ok(Weight { ty, rows, cols, file: info.file, start, len })
}
