//! Splits text into words before merging, as each model family does. The table of names is llama.cpp's, which
//! every GGUF follows (`tokenizer.ggml.pre`).

use super::aligned::Aligned;
use super::classes::Class;
use super::words::{Letters, Modern, Rule};
use crate::error::{Code, Error, Result};
use std::borrow::Cow;
use std::ops::Range;
use unicode_normalization::{IsNormalized, UnicodeNormalization, char::canonical_combining_class, is_nfc_quick};

/// How a family's text becomes words, and what its files mean where they say nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pattern {
    rule: Rule,
    /// Numbers are cut off first, at most so many digits at a time.
    digits: Option<usize>,
    /// The text is normalised to NFC first. GGUFs do not say so, but these models were trained so.
    nfc: bool,
    /// A word that is a token is that token, even if no merges lead to it.
    pub(super) whole_words: bool,
    /// Every text begins with BOS unless the file says otherwise.
    pub(super) begins: bool,
    /// A text stands between BOS and a separator unless the file says otherwise.
    pub(super) wraps: bool,
}

const NEWLINES: &[char] = &['\r', '\n'];
const GPT2: Pattern =
    Pattern { rule: Rule::Gpt2, digits: None, nfc: false, whole_words: false, begins: false, wraps: false };
const LLAMA3: Modern = Modern { letters: Letters::Plain, digits: 3, after: NEWLINES, contractions: true };
const CASED: Modern = Modern { letters: Letters::Cased, digits: 3, after: &['\r', '\n', '/'], contractions: true };

const fn modern(rule: Modern) -> Pattern {
    Pattern { rule: Rule::Modern(rule), ..GPT2 }
}

/// The names of each pattern.
const TABLE: &[(&[&str], Pattern)] = &[
    (
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
        ],
        GPT2,
    ),
    (&["olmo", "mpt", "modern-bert"], Pattern { nfc: true, ..GPT2 }),
    (&["roberta-bpe", "jina-v1-en", "jina-v2-code"], Pattern { wraps: true, ..GPT2 }),
    (
        &["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"],
        Pattern { digits: Some(1), ..GPT2 },
    ),
    (&["command-r"], Pattern { digits: Some(1), nfc: true, ..GPT2 }),
    (
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"],
        Pattern { whole_words: true, begins: true, ..modern(LLAMA3) },
    ),
    (&["dbrx", "smaug-bpe"], modern(LLAMA3)),
    (&["minicpm5"], Pattern { digits: Some(3), whole_words: true, ..modern(Modern { digits: usize::MAX, ..LLAMA3 }) }),
    (&["qwen2", "stablelm2"], Pattern { nfc: true, ..modern(Modern { digits: 1, ..LLAMA3 }) }),
    (&["deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "hunyuan"], modern(Modern { digits: 1, ..LLAMA3 })),
    (&["qwen35"], Pattern { nfc: true, ..modern(Modern { letters: Letters::WithMarks, digits: 1, ..LLAMA3 }) }),
    (
        &["tekken"],
        Pattern { whole_words: true, begins: true, ..modern(Modern { digits: 1, contractions: false, ..CASED }) },
    ),
    (&["gpt-4o", "llama4", "kanana2"], modern(CASED)),
    (&["granite-embed-multi-97m"], Pattern { whole_words: true, ..modern(CASED) }),
];

impl Pattern {
    pub(super) fn from_name(name: Option<&str>) -> Result<Self> {
        // llama.cpp splits files without a name by a pattern that no model was trained with.
        let Some(name) = name.filter(|n| *n != "default") else {
            return Err(Error::new(Code::Missing, "the file does not say how its text is split (tokenizer.ggml.pre)")
                .hint("convert the model again with a current llama.cpp"));
        };
        let row = TABLE.iter().find(|(names, _)| names.contains(&name));
        row.map(|(_, pattern)| *pattern).ok_or_else(|| {
            Error::new(Code::Unsupported, format!("pre-tokenizer {name:?} is not supported"))
                .in_section("key tokenizer.ggml.pre")
                .hint("convert the model again with a current llama.cpp, or take a base of another family")
        })
    }

    /// The text as it is split, and if it was rewritten for that, where its parts came from.
    pub(super) fn normalised<'t>(&self, text: &'t str) -> (Cow<'t, str>, Option<Aligned>) {
        if !self.nfc || text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
            return (Cow::Borrowed(text), None);
        }
        let composed = compose(text);
        (Cow::Owned(composed.text().to_owned()), Some(composed))
    }

    /// Calls `word` with consecutive byte ranges that cover `text`.
    pub(super) fn split(&self, text: &str, mut word: impl FnMut(Range<usize>)) {
        let between = |from: usize, to: usize, word: &mut dyn FnMut(Range<usize>)| {
            let mut at = from;
            while at < to {
                let n = self.rule.next(&text[at..to]);
                word(at..at + n);
                at += n;
            }
        };
        let mut from = 0;
        if let Some(most) = self.digits {
            let number = |c: char| Class::of(c) == Class::Number;
            while let Some(at) = text[from..].find(number) {
                between(from, from + at, &mut word);
                from += at;
                let n = text[from..].chars().take(most).take_while(|c| number(*c)).map(char::len_utf8).sum::<usize>();
                word(from..from + n);
                from += n;
            }
        }
        between(from, text.len(), &mut word);
    }
}

/// The NFC of a text. It is composed stretch by stretch: a stretch begins with a character that no other character
/// before it changes or is changed by.
fn compose(text: &str) -> Aligned {
    let stable = |c: char| {
        c.is_ascii() || canonical_combining_class(c) == 0 && is_nfc_quick([c].into_iter()) == IsNormalized::Yes
    };
    let mut out = Aligned::default();
    let mut starts: Vec<usize> = text.char_indices().filter(|(_, c)| stable(*c)).map(|(i, _)| i).collect();
    if starts.first() != Some(&0) {
        starts.insert(0, 0);
    }
    starts.push(text.len());
    let mut kept = 0;
    for w in starts.windows(2) {
        let stretch = &text[w[0]..w[1]];
        let composed: String = stretch.nfc().collect();
        if composed != stretch {
            out.keep(&text[kept..w[0]], kept);
            out.push(&composed, w[0]..w[1]);
            kept = w[1];
        }
    }
    out.keep(&text[kept..], kept);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn composed_text_knows_where_it_came_from() {
        let text = "ne\u{301}e \u{1100}\u{1161}\u{11a8} e\u{323}\u{302} \u{958}x";
        let a = compose(text);
        assert_eq!(a.text(), text.nfc().collect::<String>());
        let at = |s: &str| a.text().find(s).map(|i| i..i + s.len()).unwrap();
        assert_eq!(&text[a.source(&at("é"))], "e\u{301}");
        assert_eq!(&text[a.source(&at("ée "))], "e\u{301}e ");
        assert_eq!(&text[a.source(&at("n"))], "n");
        assert_eq!(&text[a.source(&at("각"))], "\u{1100}\u{1161}\u{11a8}");
        assert_eq!(&text[a.source(&at("x"))], "x");
    }

    #[test]
    fn no_name_stands_in_the_table_twice() {
        let names: Vec<_> = TABLE.iter().flat_map(|(names, _)| *names).collect();
        let unique: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(names.len(), unique.len());
        for name in names {
            assert!(Pattern::from_name(Some(name)).is_ok());
        }
        assert!(Pattern::from_name(Some("llama")).unwrap_err().to_string().contains("\"llama\""));
    }
}
