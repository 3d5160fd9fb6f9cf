//! Runs choice heads: the log-likelihood of each label's text after a prompt, see [`conpet_formats::choice`].

use crate::session::{Sequence, Session};
use conpet_formats::head::log_softmax;

/// The labels of a choice head.
#[derive(Debug, Clone)]
pub(crate) struct Choices {
    /// Each label's tokens; none is empty.
    labels: Vec<Vec<u32>>,
    /// Indices of the labels, sorted by tokens, so that neighbours share their longest prefixes.
    order: Vec<usize>,
    /// Whether a label's log-likelihood is divided by its number of tokens.
    mean: bool,
}

impl Choices {
    /// A choice among labels, given as tokens.
    ///
    /// # Panics
    /// If a label has no tokens.
    pub(crate) fn new(labels: Vec<Vec<u32>>, mean: bool) -> Self {
        assert!(labels.iter().all(|l| !l.is_empty()));
        let mut order: Vec<usize> = (0..labels.len()).collect();
        order.sort_by(|a, b| labels[*a].cmp(&labels[*b]));
        Self { labels, order, mean }
    }

    /// Scores `[labels]` after the prompt that `sequence` holds and may already have run in part.
    ///
    /// The prompt is run once, then one token for each inner node of the prefix tree of labels.
    pub(crate) fn scores(&self, session: &mut Session, mut sequence: Sequence) -> Vec<f32> {
        let prompt = sequence.tokens().len();
        let mut next = |sequence: &mut Sequence, tokens: &[u32]| {
            sequence.push(tokens);
            session.run(&mut [sequence]);
            let mut logits = sequence.logits().to_vec();
            log_softmax(&mut logits, 1.0);
            logits
        };
        // Next-token log-probabilities after the prompt and after each token of the current label's prefix.
        let mut after = vec![next(&mut sequence, &[])];
        let mut before: &[u32] = &[];
        let mut out = vec![0.0; self.labels.len()];
        for i in &self.order {
            let label = self.labels[*i].as_slice();
            let shared = label.iter().zip(before).take_while(|(a, b)| a == b).count();
            after.truncate(shared + 1);
            sequence.truncate(prompt + after.len() - 1);
            for t in &label[after.len() - 1..label.len() - 1] {
                after.push(next(&mut sequence, &[*t]));
            }
            let sum: f32 = label.iter().zip(&after).map(|(t, lp)| lp[*t as usize]).sum();
            out[*i] = if self.mean { sum / label.len() as f32 } else { sum };
            before = label;
        }
        out
    }
}
