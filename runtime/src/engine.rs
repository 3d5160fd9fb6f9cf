//! The engine: a base ready to run, and the first steps of a prompt.
//!
//! A prompt goes `tokenizer -> trunk -> decide -> branch -> head | sampler`. The steps that need only a base
//! are here; those that need a bundle are in [`crate::answer`] and [`crate::text`].

use crate::base::Base;
use crate::batch::Span;
use crate::blend::Blend;
use crate::cpu::Cpu;
use crate::decoder::finish;
use crate::device::{CpuDevice, Device};
use crate::error::{Code, Error, Result};
use crate::features::Pooler;
use crate::kernels::Kernels;
use crate::kv::{Kv, KvType};
use crate::prompt::Prompt;
use conpet_formats::feature::FeatureSpec;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// A base ready to run. A handle: clones share base, threads and work space.
///
/// ```no_run
/// use conpet_runtime::engine::Engine;
/// use conpet_runtime::text::Request;
/// use std::path::Path;
///
/// let engine = Engine::open(Path::new("base.gguf"), 2)?.with_context(1024);
/// let request = Request { text: "The capital of France is".into(), max_tokens: Some(16), ..Request::default() };
/// let answer = engine.generate(None, &request, &mut |piece| {
///     print!("{piece}");
///     true
/// })?;
/// println!(" ({})", answer.finish.name());
/// # Ok::<(), conpet_runtime::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Engine {
    /// The frozen model.
    pub base: Arc<Base>,
    cpu: Cpu,
    device: Arc<dyn Device>,
    kv_type: KvType,
    batch: usize,
    context: usize,
}

/// Prompts that have passed the trunk of the bare base.
#[derive(Debug, Clone)]
pub struct Trunked {
    /// The prompts.
    pub prompts: Vec<Arc<Prompt>>,
    /// Layers of the trunk.
    pub depth: usize,
    /// States after the trunk, `[tokens, hidden]`, one prompt after another.
    pub hidden: Vec<f32>,
    /// The features that were asked for, `[prompts, dim]`; empty if none were.
    pub features: Vec<f32>,
    /// The trunk's cache of each prompt, to generate text from; empty if they were not kept.
    pub caches: Vec<Kv>,
}

impl Trunked {
    /// The states of one prompt, `[tokens, hidden]`.
    ///
    /// # Panics
    /// If there are not that many prompts.
    pub fn states(&self, i: usize) -> &[f32] {
        let tokens: usize = self.prompts.iter().map(|p| p.tokens.len()).sum();
        let width = self.hidden.len() / tokens.max(1);
        let start: usize = self.prompts[..i].iter().map(|p| p.tokens.len()).sum();
        &self.hidden[start * width..(start + self.prompts[i].tokens.len()) * width]
    }
}

/// An encoder's texts always pass in batches, so finer rounding there makes no difference between one token and
/// many; a decoder's prompt and its answer are rounded alike.
fn rounding(base: &Base, kernels: Kernels) -> Kernels {
    if base.spec.causal { kernels } else { kernels.fine() }
}

impl Engine {
    /// Opens a base with the fastest kernels of this processor; `threads` 0 is one for each processor.
    ///
    /// # Errors
    /// See [`Base::open`].
    pub fn open(base: &Path, threads: usize) -> Result<Self> {
        Ok(Self::new(Arc::new(Base::open(base)?), threads))
    }

    /// An engine for a base already open; `threads` as in [`Engine::open`].
    pub fn new(base: Arc<Base>, threads: usize) -> Self {
        let (mut cpu, context) = (Cpu::new(threads), base.spec.context);
        cpu.kernels = rounding(&base, cpu.kernels);
        let device = Arc::new(CpuDevice::new(base.clone(), cpu.clone()));
        Self { base, cpu, device, kv_type: KvType::default(), batch: 256, context }
    }

    /// Computes with these kernels, on the processor's own device: one given by [`Engine::with_device`] is
    /// replaced, so give that last.
    #[must_use]
    pub fn with_kernels(self, kernels: Kernels) -> Self {
        let cpu = Cpu { kernels: rounding(&self.base, kernels), ..self.cpu };
        let device = Arc::new(CpuDevice::new(self.base.clone(), cpu.clone()));
        Self { cpu, device, ..self }
    }

    /// Runs layers on another device.
    #[must_use]
    pub fn with_device(self, device: Arc<dyn Device>) -> Self {
        Self { device, ..self }
    }

    /// Sets the type of KV caches.
    #[must_use]
    pub fn with_kv_type(self, kv_type: KvType) -> Self {
        Self { kv_type, ..self }
    }

    /// Limits the tokens of one batch, and so the work space.
    #[must_use]
    pub fn with_batch(self, batch: usize) -> Self {
        Self { batch, ..self }
    }

    /// Limits the tokens of a prompt together with its answer.
    #[must_use]
    pub fn with_context(self, context: usize) -> Self {
        Self { context, ..self }
    }

    /// Instruction set and worker pool.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// Where layers run.
    pub fn device(&self) -> &dyn Device {
        &*self.device
    }

    /// The type of KV caches.
    pub fn kv_type(&self) -> KvType {
        self.kv_type
    }

    /// Most tokens in one batch.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Most tokens of a prompt together with its answer.
    pub fn context(&self) -> usize {
        self.context
    }

    /// An empty cache for these layers.
    pub(crate) fn cache(&self, layers: Range<usize>) -> Kv {
        self.device.cache(layers, self.kv_type)
    }

    /// Tokenizes a text that is complete: an input to be classified or measured. With `words`, the text came out
    /// of a chat template, and control tokens are read outside these byte ranges; without, they are read nowhere.
    ///
    /// # Errors
    /// If the text has no tokens or more than the context.
    pub fn prompt(&self, text: &str, words: Option<&[Range<usize>]>) -> Result<Prompt> {
        self.tokenized(text, words, self.base.tokenizer.closing())
    }

    /// Tokenizes a text that is to be continued, as [`Engine::prompt`] does: the two differ by the token at the
    /// end, where the base has one.
    ///
    /// # Errors
    /// See [`Engine::prompt`].
    pub fn opening(&self, text: &str, words: Option<&[Range<usize>]>) -> Result<Prompt> {
        self.tokenized(text, words, None)
    }

    /// Tokens without the one that closes them, so that they can be continued.
    pub(crate) fn unclosed<'t>(&self, tokens: &'t [u32]) -> &'t [u32] {
        let closed = self.base.tokenizer.closing().filter(|c| tokens.last() == Some(c));
        &tokens[..tokens.len() - usize::from(closed.is_some())]
    }

    fn tokenized(&self, text: &str, words: Option<&[Range<usize>]>, closing: Option<u32>) -> Result<Prompt> {
        let (mut tokens, mut offsets) = self.base.tokenizer.encode_with_offsets(text, words)?;
        // A template may have spelled the token at either end; there is never a second one.
        if let Some(bos) = self.base.tokenizer.bos().filter(|bos| tokens.first() != Some(bos)) {
            tokens.insert(0, bos);
            offsets.insert(0, 0..0);
        }
        if let Some(closing) = closing.filter(|c| tokens.last() != Some(c)) {
            tokens.push(closing);
            offsets.push(text.len()..text.len());
        }
        if tokens.is_empty() {
            return Err(Error::new(Code::Value, "the input is empty").hint("give at least one character of text"));
        }
        if tokens.len() > self.context {
            return Err(Error::new(
                Code::Cap,
                format!("the input has {} tokens, the context {}", tokens.len(), self.context),
            )
            .hint("shorten the input or raise --ctx-size"));
        }
        Ok(Prompt { text: text.to_owned(), tokens, offsets })
    }

    /// Embeds tokens, each with its position in its sequence, into `hidden [tokens, hidden]`.
    pub fn embed(&self, tokens: impl Iterator<Item = (u32, usize)>, hidden: &mut Vec<f32>) {
        let (table, h, k) = (self.base.embedding(), self.base.spec.hidden, self.cpu.kernels);
        let scale = self.base.spec.embedding.scale;
        let (positions, token_type, norm) = (self.base.positions(), self.base.token_type(), self.base.embedding_norm());
        let mut learned = vec![0.0; positions.map_or(0, |p| p.cols)];
        hidden.clear();
        for (t, position) in tokens {
            let at = hidden.len();
            hidden.resize(at + h, 0.0);
            let row = &mut hidden[at..];
            k.dequantize_row(table, t as usize, row);
            if scale != 1.0 {
                row.iter_mut().for_each(|v| *v *= scale);
            }
            if let Some(kind) = token_type {
                k.add(row, kind);
            }
            if let Some(table) = positions {
                k.dequantize_row(table, position, &mut learned);
                k.add(row, &learned);
            }
            if let Some(norm) = norm {
                norm.row_inplace(k, row);
            }
        }
    }

    /// Next-token logits `[n, vocab]` of normed states `[n, hidden]`.
    ///
    /// # Panics
    /// If the base is an encoder.
    pub(crate) fn output(&self, normed: &[f32], logits: &mut [f32], n: usize) {
        self.cpu.matmul(self.base.output(), normed, logits, n);
        self.base.used(self.base.spec.n_layer);
        let output = &self.base.spec.output;
        if output.scale != 1.0 {
            logits.iter_mut().for_each(|v| *v *= output.scale);
        }
        if let Some(cap) = output.cap {
            self.cpu.kernels.soft_cap(logits, cap);
        }
    }

    /// Fails if the base is an encoder, which predicts no tokens; `what` is what was asked for.
    ///
    /// # Errors
    /// `E_UNSUPPORTED`.
    pub fn check_predicts(&self, what: &str) -> Result<()> {
        if self.base.spec.causal {
            return Ok(());
        }
        let arch = &self.base.spec.arch;
        Err(Error::new(Code::Unsupported, format!("{what} needs a base that predicts tokens, a {arch} base does not"))
            .in_file(self.base.path())
            .hint("an encoder classifies, routes and embeds; take a decoder, as Llama or Qwen, to generate text"))
    }

    /// Runs prompts through the first `depth` layers of the bare base and reads `feature`, running a copy of
    /// the states further if it reads deeper layers. With `keep`, the caches are kept.
    pub fn trunk(&self, prompts: Vec<Arc<Prompt>>, depth: usize, feature: Option<&FeatureSpec>, keep: bool) -> Trunked {
        let mut hidden = Vec::new();
        self.embed(prompts.iter().flat_map(|p| p.placed()), &mut hidden);
        let mut pooler = feature.map(|f| Pooler::new(f, &self.base, self.cpu.kernels, prompts.iter().map(|p| &**p)));
        let observe = &mut |layer: usize, hidden: &[f32]| {
            if let Some(p) = &mut pooler {
                p.observe(layer, hidden);
            }
        };
        observe(0, &hidden);
        let bare = Blend::none();
        let once = || prompts.iter().map(|p| Span::once(p.tokens.len(), &bare)).collect::<Vec<_>>();
        // Only decoders go on from a cache.
        let kept = if keep && self.base.spec.causal { prompts.len() } else { 0 };
        let mut caches: Vec<Kv> = (0..kept).map(|_| self.cache(0..depth)).collect();
        let mut spans = once();
        spans.iter_mut().zip(&mut caches).for_each(|(s, kv)| s.kv = Some(kv));
        self.device.layers(0..depth, &mut spans, &mut hidden, observe);
        drop(spans);
        let deepest = feature.map_or(0, |f| f.max_layer() as usize);
        if deepest > depth {
            self.device.layers(depth..deepest, &mut once(), &mut hidden.clone(), observe);
        }
        let features = pooler.map(Pooler::finish).unwrap_or_default();
        Trunked { prompts, depth, hidden, features, caches }
    }

    /// Runs prompts from the states `hidden [tokens, hidden]` after the trunk to the last layer that `feature`
    /// reads, each with its own blend in force; returns the features `[prompts, dim]`. `hidden` is overwritten.
    ///
    /// # Panics
    /// If a module of a blend acts below the trunk.
    pub fn branch<'p>(
        &self,
        depth: usize,
        prompts: impl IntoIterator<Item = (&'p Prompt, &'p Blend)>,
        hidden: &mut [f32],
        feature: &FeatureSpec,
    ) -> Vec<f32> {
        let (prompts, mut spans): (Vec<&Prompt>, Vec<Span<'_>>) =
            prompts.into_iter().map(|(p, blend)| (p, Span::once(p.tokens.len(), blend))).unzip();
        spans.iter().for_each(|s| s.blend.assert_above(depth));
        let mut pooler = Pooler::new(feature, &self.base, self.cpu.kernels, prompts.into_iter());
        pooler.observe(depth, hidden);
        let end = (feature.max_layer() as usize).max(depth);
        self.device.layers(depth..end, &mut spans, hidden, &mut |l, h| pooler.observe(l, h));
        pooler.finish()
    }

    /// Logits `[tokens, vocab]` after each token of one prompt, in one batch and without caches.
    pub fn logits(&self, prompt: &Prompt, blend: &Blend) -> Vec<f32> {
        let (spec, n) = (&self.base.spec, prompt.tokens.len());
        let (mut hidden, mut normed) = (Vec::new(), vec![0.0; n * spec.hidden]);
        self.embed(prompt.placed(), &mut hidden);
        self.device.layers(0..spec.n_layer, &mut [Span::once(n, blend)], &mut hidden, &mut |_, _| {});
        finish(&self.cpu, &self.base, &hidden, &mut normed);
        let mut out = vec![0.0; n * spec.vocab];
        self.output(&normed, &mut out, n);
        out
    }
}
