//! The name of a pre-tokenizer (how a text is split before byte pairs are joined), from what `tokenizer.json` says
//! of it.

use super::Files;
use conpet_formats::{Code, Result};
use serde_json::{Value, json};

/// A split by this expression, then bytes.
const CL100K: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// llama.cpp's name for the pre-tokenizer. Of several names for the same rules it takes the one that `usual` lists.
///
/// # Errors
/// If it is one without a name here.
pub(super) fn name(files: &Files, usual: &'static [&'static str]) -> Result<&'static str> {
    let steps = match files.at(&["pre_tokenizer"]) {
        Some(v) if v.get("type") == Some(&json!("Sequence")) => {
            v.get("pretokenizers").and_then(Value::as_array).cloned().unwrap_or_default()
        }
        Some(v) => vec![v.clone()],
        None => Vec::new(),
    };
    let whole_words_first = files.at(&["model", "ignore_merges"]) == Some(&Value::Bool(true));
    let steps: Vec<Step<'_>> = steps.iter().map(Step::read).collect();
    let names: &[&'static str] = match &steps[..] {
        [Step::Bytes { words: true }] => &["gpt-2", "roberta-bpe", "modern-bert"],
        [Step::Digits, Step::Bytes { words: true }] => &["smollm", "refact", "starcoder"],
        [Step::Split(re), Step::Bytes { words: false }] if *re == CL100K && whole_words_first => &["llama-bpe"],
        [Step::Split(re), Step::Bytes { words: false }] if *re == CL100K => &["dbrx", "smaug-bpe"],
        [Step::Split(re), Step::Bytes { words: false }] if *re == QWEN2 => &["qwen2"],
        [Step::Split(re), Step::Bytes { words: false }] if *re == GPT4O => &["gpt-4o"],
        _ => &[],
    };
    names.iter().find(|n| usual.contains(n)).or_else(|| names.first()).copied().ok_or_else(|| {
        let what = files.at(&["pre_tokenizer"]).map_or("missing".to_owned(), Value::to_string);
        files.wrong(Code::Unsupported, format!("the pre-tokenizer is not one that is known: {what}"))
    })
}

/// One step of a pre-tokenizer.
#[derive(Debug, PartialEq)]
enum Step<'a> {
    /// Text to bytes; `words`: split by GPT-2's own expression first.
    Bytes {
        words: bool,
    },
    /// Each digit for itself.
    Digits,
    /// What an expression matches is a word, and so is what lies between.
    Split(&'a str),
    Other,
}

impl<'a> Step<'a> {
    fn read(v: &'a Value) -> Self {
        let is = |key: &str, value: Value| v.get(key).is_none_or(|x| *x == value);
        match v.get("type").and_then(Value::as_str) {
            Some("ByteLevel") if is("add_prefix_space", json!(false)) => {
                Self::Bytes { words: is("use_regex", json!(true)) }
            }
            Some("Digits") if is("individual_digits", json!(true)) => Self::Digits,
            // Words kept and the rest removed is the same, for these expressions leave no rest.
            Some("Split")
                if is("behavior", json!("Isolated")) && is("invert", json!(false))
                    || is("behavior", json!("Removed")) && is("invert", json!(true)) =>
            {
                v.get("pattern").and_then(|p| p.get("Regex")?.as_str()).map_or(Self::Other, Self::Split)
            }
            _ => Self::Other,
        }
    }
}
