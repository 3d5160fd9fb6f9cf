//! Splits text into words before merging, as each model family's pattern does.
//!
//! The patterns are regular expressions with look-ahead in llama.cpp; here they are written out by
//! hand, because a regex engine with look-ahead would be the largest part of the runtime. The
//! oracle test compares them with the regular expressions on text of many scripts.

use crate::error::{Code, Error, Result};
use std::ops::Range;

/// A family's pattern for splitting text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pattern {
    /// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
    Gpt2,
    /// As GPT-2, but each digit stands alone.
    SmolLm,
    /// Contractions in any case, one other character may precede letters, digits in groups of three.
    Llama3,
    /// As Llama 3, but each digit stands alone.
    Qwen2,
}

impl Pattern {
    pub(super) fn from_name(name: &str) -> Result<Self> {
        match name {
            "gpt-2" | "gpt2" => Ok(Self::Gpt2),
            "smollm" => Ok(Self::SmolLm),
            "llama-bpe" | "llama3" | "llama-v3" => Ok(Self::Llama3),
            "qwen2" => Ok(Self::Qwen2),
            // llama.cpp splits such files by a default pattern that no model was trained with.
            "default" => {
                Err(Error::new(Code::Missing, "the file does not say how its text is split (tokenizer.ggml.pre)")
                    .hint("convert the model again with a current llama.cpp"))
            }
            other => Err(Error::new(Code::Unsupported, format!("pre-tokenizer {other:?} is not supported"))
                .hint("this release knows gpt-2, smollm, llama-bpe and qwen2")),
        }
    }
}

fn letter(c: char) -> bool {
    // `\p{L}`: alphabetic without the combining marks and letter-like numbers that std adds.
    c.is_alphabetic() && !is_mark(c) && !c.is_numeric()
}

fn number(c: char) -> bool {
    c.is_numeric()
}

/// Alphabetic marks (`\p{M}`) of the common scripts, which `char::is_alphabetic` counts as letters.
fn is_mark(c: char) -> bool {
    use unicode_general_category::{GeneralCategory as G, get_general_category};
    !c.is_ascii()
        && matches!(get_general_category(c), G::NonspacingMark | G::SpacingMark | G::EnclosingMark | G::OtherSymbol)
}

/// Calls `word` with consecutive byte ranges that cover `text`.
pub(super) fn split(pattern: Pattern, text: &str, mut word: impl FnMut(Range<usize>)) {
    match pattern {
        Pattern::Gpt2 => walk(text, 0, gpt2, &mut word),
        Pattern::SmolLm => {
            // Digits first, one by one; then the GPT-2 pattern on what lies between.
            let mut from = 0;
            for (i, c) in text.char_indices().filter(|(_, c)| number(*c)) {
                walk(&text[from..i], from, gpt2, &mut word);
                word(i..i + c.len_utf8());
                from = i + c.len_utf8();
            }
            walk(&text[from..], from, gpt2, &mut word);
        }
        Pattern::Llama3 => walk(text, 0, |t| llama3(t, 3), &mut word),
        Pattern::Qwen2 => walk(text, 0, |t| llama3(t, 1), &mut word),
    }
}

fn walk(text: &str, base: usize, next: impl Fn(&str) -> usize, word: &mut impl FnMut(Range<usize>)) {
    let mut at = 0;
    while at < text.len() {
        let len = next(&text[at..]);
        word(base + at..base + at + len);
        at += len;
    }
}

/// Bytes of the longest run of characters for which `f` holds, from `from`.
fn run(text: &str, from: usize, f: impl Fn(char) -> bool) -> usize {
    text[from..].find(|c| !f(c)).unwrap_or(text.len() - from)
}

fn contraction(text: &str, fold: bool) -> Option<usize> {
    let rest = text.strip_prefix('\'')?;
    ["re", "ve", "ll", "s", "t", "m", "d"].into_iter().find_map(|s| {
        let head = rest.get(..s.len())?;
        // `(?i)` also folds U+017F, the long s.
        let same = if fold { head.eq_ignore_ascii_case(s) } else { head == s };
        same.then_some(1 + s.len())
            .or_else(|| (fold && s == "s" && rest.starts_with('ſ')).then_some(1 + 'ſ'.len_utf8()))
    })
}

/// Bytes of white space at the start: all but the last character if something follows, since the last one
/// begins the next word; a single one stands alone.
fn spaces(text: &str) -> usize {
    let all = run(text, 0, char::is_whitespace);
    if all == text.len() {
        return all;
    }
    let last = text[..all].chars().next_back().map_or(0, char::len_utf8);
    if all > last { all - last } else { all }
}

/// The next word of the GPT-2 pattern; `text` is not empty.
fn gpt2(text: &str) -> usize {
    if let Some(n) = contraction(text, false) {
        return n;
    }
    let lead = usize::from(text.starts_with(' '));
    if let Some(c) = text[lead..].chars().next() {
        let other = |c: char| !c.is_whitespace() && !letter(c) && !number(c);
        let n = if letter(c) {
            run(text, lead, letter)
        } else if number(c) {
            run(text, lead, number)
        } else if other(c) {
            run(text, lead, other)
        } else {
            0
        };
        if n > 0 {
            return lead + n;
        }
    }
    spaces(text)
}

/// The next word of the Llama 3 pattern, with digits in groups of at most `digits`:
/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn llama3(text: &str, digits: usize) -> usize {
    if let Some(n) = contraction(text, true) {
        return n;
    }
    let first = text.chars().next().unwrap_or(' ');
    let newline = |c: char| c == '\r' || c == '\n';
    let lead = if letter(first) || number(first) || newline(first) { 0 } else { first.len_utf8() };
    if text[lead..].starts_with(letter) {
        return lead + run(text, lead, letter);
    }
    if number(first) {
        return text.chars().take(digits).take_while(|c| number(*c)).map(char::len_utf8).sum();
    }
    let other = |c: char| !c.is_whitespace() && !letter(c) && !number(c);
    let space = usize::from(text.starts_with(' '));
    let n = run(text, space, other);
    if n > 0 {
        let end = space + n;
        return end + run(text, end, newline);
    }
    // White space that ends in newlines keeps them all.
    let all = run(text, 0, char::is_whitespace);
    if let Some(at) = text[..all].rfind(newline) {
        return at + 1;
    }
    spaces(text)
}
