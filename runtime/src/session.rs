//! Sequences that advance together: each with its own caches, blend and sampler.
//!
//! A [`Sequence`] passes the trunk, which is the same for every blend, and then the branch. Each has its own
//! caches, so a sequence that keeps its states after the trunk ([`Sequence::keep_states`]) can change its blend
//! and rerun only the branch.

use crate::batch::Span;
use crate::blend::Blend;
use crate::decoder::finish;
use crate::engine::Engine;
use crate::kv::Kv;
use crate::prompt::Prompt;
use crate::sampler::Sampler;
use smallvec::SmallVec;

/// A sequence of tokens that grows step by step.
#[derive(Debug)]
pub struct Sequence {
    /// Layers of the trunk.
    depth: usize,
    blend: Blend,
    sampler: Option<Sampler>,
    /// All tokens; those still to be run come last.
    tokens: Vec<u32>,
    /// How many of them have passed the trunk, and how many have also passed the branch.
    passed: [usize; 2],
    trunk: Kv,
    branch: Kv,
    /// States after the trunk, `[tokens, hidden]`, from token `states_from` on.
    states: Vec<f32>,
    states_from: usize,
    keep_states: bool,
    /// The last state of the newest token, `[hidden]`, and whether its logits are still to be computed.
    last: Vec<f32>,
    fresh: bool,
    logits: Vec<f32>,
}

impl Sequence {
    /// Sets the sampler that chooses its next tokens ([`Session::step`]).
    #[must_use]
    pub fn with_sampler(self, sampler: Sampler) -> Self {
        Self { sampler: Some(sampler), ..self }
    }

    /// Keeps the states after the trunk (`4 · hidden` bytes for each token), so that the blend can change
    /// without running the trunk again.
    #[must_use]
    pub fn keep_states(self) -> Self {
        Self { keep_states: true, ..self }
    }

    /// Replaces the sampler.
    pub fn set_sampler(&mut self, sampler: Sampler) {
        self.sampler = Some(sampler);
    }

    /// All tokens, run or still to be run.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Logits `[vocab]` after the newest token that was run; empty before the first.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// The blend in force.
    pub fn blend(&self) -> &Blend {
        &self.blend
    }

    /// Bytes of both caches.
    pub fn kv_bytes(&self) -> usize {
        self.trunk.bytes() + self.branch.bytes()
    }

    /// Adds tokens, which the next step runs.
    pub fn push(&mut self, tokens: &[u32]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// Forgets all tokens from `len` on; there are no logits then until more tokens are run.
    pub fn truncate(&mut self, len: usize) {
        if len >= self.tokens.len() {
            return;
        }
        if self.passed[1] > len {
            self.logits.clear();
            self.fresh = false;
        }
        self.tokens.truncate(len);
        self.passed = self.passed.map(|n| n.min(len));
        self.trunk.truncate(len);
        self.branch.truncate(len);
        self.states_from = self.states_from.min(len);
        self.states.truncate((self.passed[0] - self.states_from) * self.last.len());
    }

    /// Puts another blend in force for all tokens: the branch is run again, and the trunk too unless its
    /// states were kept.
    ///
    /// # Panics
    /// If a module of the blend acts below the session's trunk.
    pub fn set_blend(&mut self, blend: Blend) {
        if self.blend.same(&blend) {
            return;
        }
        blend.assert_above(self.depth);
        self.blend = blend;
        self.branch.truncate(0);
        self.passed[1] = 0;
        if self.states_from > 0 {
            self.trunk.truncate(0);
            self.states.clear();
            (self.passed[0], self.states_from) = (0, 0);
        }
    }

    /// How many tokens the trunk, and the branch, still have to run.
    fn left(&self) -> [usize; 2] {
        [self.tokens.len() - self.passed[0], self.passed[0] - self.passed[1]]
    }
}

/// Runs sequences on one engine; keeps the work space between steps.
///
/// ```no_run
/// use conpet_runtime::blend::Blend;
/// use conpet_runtime::engine::Engine;
/// use conpet_runtime::sampler::{Sampler, SamplerConfig};
/// use conpet_runtime::session::Session;
/// use std::path::Path;
///
/// let engine = Engine::open(Path::new("base.gguf"), 2)?;
/// let mut session = Session::new(&engine, 0);
/// let mut both = ["Once upon a time", "The sea"].map(|_| {
///     session.sequence(Blend::none()).with_sampler(Sampler::new(SamplerConfig::default()))
/// });
/// for (sequence, text) in both.iter_mut().zip(["Once upon a time", "The sea"]) {
///     sequence.push(&engine.opening(text, None)?.tokens);
/// }
/// let [a, b] = &mut both;
/// for _ in 0..16 {
///     session.step(&mut [&mut *a, &mut *b]);
/// }
/// # Ok::<(), conpet_runtime::Error>(())
/// ```
#[derive(Debug)]
pub struct Session {
    engine: Engine,
    /// Number of layers of the trunk.
    depth: usize,
    hidden: Vec<f32>,
    normed: Vec<f32>,
    logits: Vec<f32>,
}

impl Session {
    /// A session whose trunk is the first `depth` layers.
    ///
    /// # Panics
    /// If the base is an encoder, which predicts no tokens.
    pub fn new(engine: &Engine, depth: usize) -> Self {
        assert!(engine.base.spec.causal, "only decoders go on token by token");
        Self { engine: engine.clone(), depth, hidden: Vec::new(), normed: Vec::new(), logits: Vec::new() }
    }

    /// An empty sequence.
    ///
    /// # Panics
    /// If a module of the blend acts below the session's trunk.
    pub fn sequence(&self, blend: Blend) -> Sequence {
        let trunk = self.engine.cache(0..self.depth);
        self.after_trunk(blend, Vec::new(), trunk, Vec::new())
    }

    /// A sequence whose `tokens` have passed the trunk, with their cache and their states
    /// `[tokens, hidden]` after it.
    pub(crate) fn after_trunk(&self, blend: Blend, tokens: Vec<u32>, trunk: Kv, states: Vec<f32>) -> Sequence {
        blend.assert_above(self.depth);
        Sequence {
            depth: self.depth,
            blend,
            sampler: None,
            passed: [tokens.len(), 0],
            tokens,
            trunk,
            branch: self.engine.cache(self.depth..self.engine.base.spec.n_layer),
            states,
            states_from: 0,
            keep_states: false,
            last: vec![0.0; self.engine.base.spec.hidden],
            fresh: false,
            logits: Vec::new(),
        }
    }

    /// Runs the tokens that each sequence has left, together in batches of at most the engine's size;
    /// afterwards [`Sequence::logits`] are those after its newest token. A sequence with nothing left keeps the
    /// logits it has.
    pub fn run(&mut self, sequences: &mut [&mut Sequence]) {
        while sequences.iter().any(|s| s.left() != [0, 0]) {
            // The branch runs before the trunk continues, so that states after the trunk do not pile up.
            if sequences.iter().all(|s| s.left()[1] == 0) {
                self.through_trunk(sequences);
            }
            self.through_branch(sequences);
        }
        self.predict(sequences);
    }

    /// Runs the tokens that each sequence has left, chooses its next token with its sampler, and adds it as the
    /// last of [`Sequence::tokens`], which the next step runs.
    ///
    /// # Panics
    /// If a sequence has no sampler, or no tokens.
    pub fn step(&mut self, sequences: &mut [&mut Sequence]) {
        self.run(sequences);
        for s in sequences {
            assert!(!s.logits.is_empty(), "a sequence that takes steps has run a token");
            let sampler = s.sampler.as_mut().expect("a sequence that takes steps has a sampler");
            let token = sampler.sample(&mut s.logits, &s.tokens);
            s.tokens.push(token);
        }
    }

    /// Logits `[tokens, vocab]` after each of the prompt's tokens, run one at a time: for parity tests.
    pub fn all_logits(&mut self, sequence: &mut Sequence, prompt: &Prompt) -> Vec<f32> {
        let mut out = Vec::with_capacity(prompt.tokens.len() * self.engine.base.spec.vocab);
        for t in &prompt.tokens {
            sequence.push(&[*t]);
            self.run(&mut [sequence]);
            out.extend_from_slice(sequence.logits());
        }
        out
    }

    /// How many tokens of each sequence the trunk (0) or the branch (1) runs next, so that all fit a batch.
    fn shares(&self, sequences: &[&mut Sequence], which: usize) -> SmallVec<[usize; 8]> {
        let mut room = self.engine.batch().max(1);
        let share = |s: &&mut Sequence| {
            let n = s.left()[which].min(room);
            room -= n;
            n
        };
        sequences.iter().map(share).collect()
    }

    fn through_trunk(&mut self, sequences: &mut [&mut Sequence]) {
        let (shares, engine, hidden) = (self.shares(sequences, 0), &self.engine, &mut self.hidden);
        let new = sequences.iter().zip(&shares).flat_map(|(s, n)| {
            let range = s.passed[0]..s.passed[0] + n;
            s.tokens[range.clone()].iter().copied().zip(range)
        });
        engine.embed(new, hidden);
        let bare = Blend::none();
        let mut spans: SmallVec<[Span<'_>; 8]> = sequences
            .iter_mut()
            .zip(&shares)
            .filter(|(_, n)| **n > 0)
            .map(|(s, n)| Span { tokens: *n, kv: Some(&mut s.trunk), blend: &bare })
            .collect();
        engine.device().layers(0..self.depth, &mut spans, hidden, &mut |_, _| {});
        drop(spans);
        let mut states = hidden.as_slice();
        for (s, n) in sequences.iter_mut().zip(shares) {
            let (own, rest) = states.split_at(n * engine.base.spec.hidden);
            s.states.extend_from_slice(own);
            s.passed[0] += n;
            states = rest;
        }
    }

    fn through_branch(&mut self, sequences: &mut [&mut Sequence]) {
        let (shares, engine, hidden) = (self.shares(sequences, 1), &self.engine, &mut self.hidden);
        let (n_layer, width) = (engine.base.spec.n_layer, engine.base.spec.hidden);
        hidden.clear();
        for (s, n) in sequences.iter().zip(&shares) {
            let from = (s.passed[1] - s.states_from) * width;
            hidden.extend_from_slice(&s.states[from..from + n * width]);
        }
        let mut spans: SmallVec<[Span<'_>; 8]> = sequences
            .iter_mut()
            .zip(&shares)
            .filter(|(_, n)| **n > 0)
            .map(|(s, n)| {
                let s = &mut **s;
                Span { tokens: *n, kv: Some(&mut s.branch), blend: &s.blend }
            })
            .collect();
        engine.device().layers(self.depth..n_layer, &mut spans, hidden, &mut |_, _| {});
        drop(spans);
        let mut end = 0;
        for (s, n) in sequences.iter_mut().zip(shares) {
            end += n * width;
            s.passed[1] += n;
            if n > 0 && s.passed[1] == s.tokens.len() {
                s.last.copy_from_slice(&hidden[end - width..end]);
                s.fresh = true;
            }
            if !s.keep_states && s.passed[1] == s.passed[0] {
                s.states.clear();
                s.states_from = s.passed[0];
            }
        }
    }

    /// Computes the logits of the sequences that have run; the output head is read once for all of them.
    fn predict(&mut self, sequences: &mut [&mut Sequence]) {
        let (engine, normed) = (&self.engine, &mut self.normed);
        let (spec, n) = (&engine.base.spec, sequences.iter().filter(|s| s.fresh).count());
        if n == 0 {
            return;
        }
        self.hidden.clear();
        sequences.iter().filter(|s| s.fresh).for_each(|s| self.hidden.extend_from_slice(&s.last));
        normed.resize(n * spec.hidden, 0.0);
        finish(engine.cpu(), &engine.base, &self.hidden, normed);
        let mut fresh = sequences.iter_mut().filter(|s| s.fresh);
        if n == 1
            && let Some(s) = fresh.next()
        {
            s.logits.resize(spec.vocab, 0.0);
            engine.output(normed, &mut s.logits, 1);
            s.fresh = false;
            return;
        }
        self.logits.resize(n * spec.vocab, 0.0);
        engine.output(normed, &mut self.logits, n);
        for (s, logits) in fresh.zip(self.logits.chunks_exact(spec.vocab)) {
            s.logits.clear();
            s.logits.extend_from_slice(logits);
            s.fresh = false;
        }
    }
}
