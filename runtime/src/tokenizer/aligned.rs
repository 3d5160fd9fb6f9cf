//! A text that was rewritten before it is cut into tokens, and where each part of it came from.

use std::ops::Range;

/// A rewritten text with the byte ranges of the original.
#[derive(Debug, Default)]
pub(super) struct Aligned {
    text: String,
    /// Parts of the text in order: where each begins, and what it stands for.
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    at: usize,
    source: Range<usize>,
    /// The part is the original, byte for byte.
    same: bool,
}

impl Aligned {
    /// Adds what the original's bytes `source` became.
    pub(super) fn push(&mut self, text: &str, source: Range<usize>) {
        self.add(text, source, false);
    }

    /// Adds a stretch of the original that begins at byte `from` of it, as it is.
    pub(super) fn keep(&mut self, text: &str, from: usize) {
        self.add(text, from..from + text.len(), true);
    }

    fn add(&mut self, text: &str, source: Range<usize>, same: bool) {
        if !text.is_empty() {
            self.parts.push(Part { at: self.text.len(), source, same });
            self.text.push_str(text);
        }
    }

    /// The rewritten text.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn clear(&mut self) {
        self.text.clear();
        self.parts.clear();
    }

    /// The bytes of the original that a range of the text, not empty, came from.
    pub(super) fn source(&self, range: &Range<usize>) -> Range<usize> {
        let part = |at: usize| &self.parts[self.parts.partition_point(|p| p.at <= at) - 1];
        let (first, last) = (part(range.start), part(range.end - 1));
        let start = first.source.start + if first.same { range.start - first.at } else { 0 };
        let end = if last.same { last.source.start + range.end - last.at } else { last.source.end };
        start..end
    }
}
