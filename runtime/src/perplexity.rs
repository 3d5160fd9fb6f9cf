//! Perplexity of a base, alone or with a module, on a text: the same values as llama.cpp's.

use crate::batch::Span;
use crate::blend::Blend;
use crate::decoder::finish;
use crate::engine::Engine;
use crate::error::{Code, Error, Result};

/// Positions whose logits are held at a time.
const ROWS: usize = 16;

/// A measured perplexity.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood.
    pub value: f64,
    /// Its standard error.
    pub error: f64,
    /// Predicted tokens.
    pub tokens: usize,
    /// Chunks measured so far.
    pub chunks: usize,
}

/// Cuts `tokens` (a text's, after BOS where the base wants one) into chunks of `context`, each of which begins
/// anew with BOS in place of its first token, and predicts the second half of each in one pass. `each` is
/// called with the measure after every chunk and may stop.
///
/// # Errors
/// If the text is shorter than one chunk, the base's output is not finite, or its file changed.
pub fn perplexity(
    engine: &Engine,
    tokens: &[u32],
    context: usize,
    blend: &Blend,
    each: &mut dyn FnMut(Perplexity) -> bool,
) -> Result<Perplexity> {
    engine.check_predicts("perplexity")?;
    let spec = &engine.base.spec;
    if context < 4 || tokens.len() < context {
        return Err(Error::new(Code::Value, format!("{} tokens do not fill a chunk of {context}", tokens.len()))
            .hint("give a longer text, or a smaller --ctx-size of at least 4"));
    }
    let bos = engine.base.tokenizer.bos();
    let (mut sum, mut squares, mut n, mut done) = (0.0f64, 0.0f64, 0usize, 0);
    let (mut hidden, mut normed) = (Vec::new(), vec![0.0; ROWS * spec.hidden]);
    let mut logits = vec![0.0; ROWS * spec.vocab];
    let result = |sum: f64, squares: f64, n: usize, chunks: usize| {
        let mean = sum / n as f64;
        let variance = (squares / n as f64 - mean * mean).max(0.0);
        let value = mean.exp();
        Perplexity { value, error: value * (variance / (n.max(2) - 1) as f64).sqrt(), tokens: n, chunks }
    };
    for chunk in tokens.chunks_exact(context) {
        let first = bos.unwrap_or(chunk[0]);
        engine.embed(std::iter::once(first).chain(chunk[1..].iter().copied()).zip(0..), &mut hidden);
        let mut spans = [Span::once(context, blend)];
        engine.device().layers(0..spec.n_layer, &mut spans, &mut hidden, &mut |_, _| {});
        // The last token's successor is in the next chunk.
        let half: Vec<usize> = (context / 2..context - 1).collect();
        for part in half.chunks(ROWS) {
            let states = &hidden[part[0] * spec.hidden..(part[0] + part.len()) * spec.hidden];
            let normed = &mut normed[..states.len()];
            finish(engine.cpu(), &engine.base, states, normed);
            let logits = &mut logits[..part.len() * spec.vocab];
            engine.output(normed, logits, part.len());
            for (i, row) in part.iter().zip(logits.chunks_exact(spec.vocab)) {
                let max = row.iter().fold(f32::NEG_INFINITY, |m, v| m.max(*v));
                let total: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
                let nll = total.ln() - f64::from(row[chunk[i + 1] as usize] - max);
                if !nll.is_finite() {
                    return Err(Error::new(Code::NotFinite, format!("logits of token {i} of chunk {done}"))
                        .hint("the base or the module is damaged; conpet-inspect verify says which"));
                }
                (sum, squares, n) = (sum + nll, squares + nll * nll, n + 1);
            }
        }
        done += 1;
        engine.check(None)?;
        if !each(result(sum, squares, n, done)) {
            break;
        }
    }
    Ok(result(sum, squares, n, done))
}
