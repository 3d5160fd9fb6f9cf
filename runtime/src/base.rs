//! A frozen base in memory: a mapped GGUF and the location of each weight in it.
//!
//! Linear weights and the embedding are used where they lie in the map; only the norms (a few hundred KiB) are
//! copied, because they are read as `f32` whatever the file stores.

use crate::budget::Budget;
use crate::chat::ChatTemplate;
use crate::error::{Code, Error, Result};
use crate::kernels::MatrixRef;
use crate::tokenizer::Tokenizer;
use conpet_formats::gguf::{Gguf, TensorInfo, TensorType};
use conpet_formats::mmap::Mapped;
use conpet_formats::model_spec::{self, ModelSpec, Norm};
use conpet_formats::quant::{self, QuantType};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use conpet_formats::model_spec::Linear;

/// A frozen quantized model.
#[derive(Debug)]
pub struct Base {
    map: Mapped,
    path: PathBuf,
    /// The shape of the model.
    pub spec: ModelSpec,
    /// The GGUF's tokenizer.
    pub tokenizer: Tokenizer,
    layers: Vec<Layer>,
    embedding: Weight,
    output_norm: Vec<f32>,
    output: Weight,
    budget: Option<Budget>,
    /// The file's modification time before anything was read from it.
    modified: Option<SystemTime>,
}

/// Where a matrix `[rows, cols]` lies in the mapped file.
#[derive(Debug, Clone, Copy)]
struct Weight {
    ty: QuantType,
    rows: usize,
    cols: usize,
    start: usize,
    len: usize,
}

#[derive(Debug)]
struct Layer {
    attn_norm: Vec<f32>,
    ffn_norm: Vec<f32>,
    qk_norm: Option<[Vec<f32>; 2]>,
    post_norm: Option<[Vec<f32>; 2]>,
    /// Indexed by [`Linear`].
    linears: [Weight; 7],
    biases: [Option<Vec<f32>>; 7],
}

/// The weights of one layer, borrowed from the map. Linears are `[out, in]`.
#[derive(Debug, Clone, Copy)]
pub struct LayerRef<'a> {
    /// Norm before attention, `[hidden]`.
    pub attn_norm: &'a [f32],
    /// Norm before the feed-forward layer, `[hidden]`.
    pub ffn_norm: &'a [f32],
    /// Norms of each query and key head, `[head_dim]`, in families that have them.
    pub qk_norm: Option<[&'a [f32]; 2]>,
    /// Norms of what attention and the feed-forward layer add, `[hidden]`, in families that have them.
    pub post_norm: Option<[&'a [f32]; 2]>,
    linears: [MatrixRef<'a>; 7],
    biases: [Option<&'a [f32]>; 7],
}

impl<'a> LayerRef<'a> {
    /// The weight `[out, in]` of one linear.
    pub fn linear(&self, which: Linear) -> MatrixRef<'a> {
        self.linears[which as usize]
    }

    /// The bias `[out]` of one linear, in families that have one.
    pub fn bias(&self, which: Linear) -> Option<&'a [f32]> {
        self.biases[which as usize]
    }
}

impl Base {
    /// Maps a GGUF and locates every weight in it. No weight is read in advance.
    ///
    /// # Errors
    /// If the file is not a strict GGUF, its architecture or a tensor type is unsupported, or a
    /// tensor is missing, has another shape than the metadata demands, or is not one that the
    /// architecture has.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_map(Mapped::open(path)?, path).map_err(|e| e.in_file(path))
    }

    /// As [`Base::open`], from bytes already in memory or mapped; `path` only names them in messages.
    pub fn from_map(map: Mapped, path: &Path) -> Result<Self> {
        let modified = map.modified()?;
        let gguf = Gguf::parse(&map)?;
        let spec = ModelSpec::from_gguf(&gguf)?;
        let weight = |name: &str, rows: usize, cols: usize| find(&gguf, name, rows, cols);
        let vector = |name: &str, width: usize| -> Result<Vec<f32>> {
            let w = find(&gguf, name, 1, width)?;
            let mut v = vec![0.0; width];
            quant::dequantize(w.ty, &map[w.start..w.start + w.len], &mut v);
            match v.iter().position(|x| !x.is_finite()) {
                None => Ok(v),
                Some(i) => Err(Error::new(Code::NotFinite, format!("element {i} is not finite")).in_section(name)),
            }
        };
        let layers = (0..spec.n_layer)
            .map(|l| {
                let mut linears = [Weight { ty: QuantType::F32, rows: 0, cols: 0, start: 0, len: 0 }; 7];
                let mut biases = [const { None }; 7];
                for (linear, (_, out, input)) in Linear::ALL.into_iter().zip(spec.linears()) {
                    linears[linear as usize] = weight(&linear.weight(l), out, input)?;
                    if spec.biases.contains(&linear) {
                        biases[linear as usize] = Some(vector(&linear.bias(l), out)?);
                    }
                }
                let norm = |norm: Norm| vector(&norm.weight(l), spec.norm_width(norm));
                let pair = |a: Norm, b: Norm| spec.has(a).then(|| Ok([norm(a)?, norm(b)?])).transpose();
                Ok(Layer {
                    attn_norm: norm(Norm::Attn)?,
                    ffn_norm: norm(Norm::Ffn)?,
                    qk_norm: pair(Norm::Q, Norm::K)?,
                    post_norm: pair(Norm::PostAttn, Norm::PostFfn)?,
                    linears,
                    biases,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let embedding = weight(model_spec::EMBEDDING, spec.vocab, spec.hidden)?;
        let output = if spec.tied { embedding } else { weight(model_spec::OUTPUT, spec.vocab, spec.hidden)? };
        let output_norm = vector(model_spec::OUTPUT_NORM, spec.hidden)?;
        spec.check_tensors(&gguf)?;
        let tokenizer = Tokenizer::from_gguf(&gguf, map.clone())?;
        if tokenizer.n_vocab() > spec.vocab {
            return Err(Error::new(
                Code::Shape,
                format!("{} tokens, but token_embd.weight has {} rows", tokenizer.n_vocab(), spec.vocab),
            )
            .in_section("tokenizer.ggml.tokens"));
        }
        let path = path.to_owned();
        Ok(Self { path, spec, tokenizer, layers, embedding, output_norm, output, map, budget: None, modified })
    }

    /// Keeps at most `bytes` of weights in memory; the rest is read from the file in every pass.
    ///
    /// # Errors
    /// If `bytes` is less than the largest layer, or the output head.
    pub fn limit_memory(&mut self, bytes: usize) -> Result<()> {
        let place = |w: &Weight| w.start..w.start + w.len;
        let layers = self.layers.iter().map(|l| l.linears.iter().map(place).collect());
        let parts = layers.chain([vec![place(&self.output)]]).collect();
        self.budget = Some(Budget::new(parts, bytes).map_err(|e| e.in_file(&self.path))?);
        Ok(())
    }

    /// Fails if the file is not what it was when it was opened: cut short, unreadable, or written to.
    /// Unlike a bundle, a base has no reason to change, and no digests that are cheap to compare.
    ///
    /// # Errors
    /// `E_CHANGED`.
    pub fn check(&self) -> Result<()> {
        let checked = self.map.check().and_then(|()| {
            if self.map.modified()? == self.modified {
                return Ok(());
            }
            Err(Error::new(Code::Changed, "the base was written to while it was in use"))
        });
        checked.map_err(|e| e.in_file(&self.path))
    }

    /// Notes that a pass is done with a layer, so that its weights may leave memory. The output head counts as
    /// the layer after the last.
    pub(crate) fn used(&self, layer: usize) {
        if let Some(b) = &self.budget {
            b.used(&self.map, layer);
        }
    }

    /// One layer's weights.
    ///
    /// # Panics
    /// If `layer >= spec.n_layer`.
    pub fn layer(&self, layer: usize) -> LayerRef<'_> {
        let l = &self.layers[layer];
        LayerRef {
            attn_norm: &l.attn_norm,
            ffn_norm: &l.ffn_norm,
            qk_norm: l.qk_norm.as_ref().map(|n| n.each_ref().map(Vec::as_slice)),
            post_norm: l.post_norm.as_ref().map(|n| n.each_ref().map(Vec::as_slice)),
            linears: l.linears.map(|w| self.matrix(w)),
            biases: l.biases.each_ref().map(Option::as_deref),
        }
    }

    /// The embedding table `[vocab, hidden]`.
    pub fn embedding(&self) -> MatrixRef<'_> {
        self.matrix(self.embedding)
    }

    /// The output head `[vocab, hidden]`; the embedding table where they are tied.
    pub fn output(&self) -> MatrixRef<'_> {
        self.matrix(self.output)
    }

    /// The weights of the final norm, `[hidden]`.
    pub fn output_norm(&self) -> &[f32] {
        &self.output_norm
    }

    /// The mapped file.
    pub fn map(&self) -> &Mapped {
        &self.map
    }

    /// The file parsed as GGUF again (cheap: nothing is copied).
    pub fn gguf(&self) -> Result<Gguf<'_>> {
        Gguf::parse(&self.map).map_err(|e| e.in_file(&self.path))
    }

    /// The chat template of the GGUF, if it has one.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        ChatTemplate::from_gguf(&self.gguf()?).map_err(|e| e.in_file(&self.path))
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of weights one token reads when decoding: all linears and the output head.
    pub fn bytes_per_token(&self) -> usize {
        self.layers.iter().flat_map(|l| &l.linears).map(|w| w.len).sum::<usize>() + self.output.len
    }

    /// Name of the most common quant type among the linears, for display.
    pub fn quant_name(&self) -> &'static str {
        self.layers[0].linears[Linear::Down as usize].ty.name()
    }

    fn matrix(&self, w: Weight) -> MatrixRef<'_> {
        MatrixRef { ty: w.ty, rows: w.rows, cols: w.cols, data: &self.map[w.start..w.start + w.len] }
    }
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
    Ok(Weight { ty, rows, cols, start, len })
}
