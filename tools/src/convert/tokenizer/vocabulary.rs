//! The tokens of a vocabulary in the order of their ids, and what kind each is.

use super::Files;
use conpet_formats::{Code, Result};
use serde_json::Value;
use std::collections::BTreeMap;

/// Kinds of tokens, as GGUF numbers them.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// The names of special tokens in `tokenizer_config.json`.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A vocabulary.
#[derive(Debug)]
pub(super) struct Vocabulary {
    /// The text of each id.
    pub(super) tokens: Vec<String>,
    /// The kind of each id.
    pub(super) kinds: Vec<i32>,
}

/// A token beside those of the model: added later, or with a meaning of its own.
#[derive(Debug, Clone)]
pub(super) struct Added {
    pub(super) id: usize,
    pub(super) text: String,
    pub(super) special: bool,
}

impl Vocabulary {
    /// The vocabulary of a `tokenizer.json` whose model maps texts to ids, with room for `size` ids. Ids without a
    /// token get a text that no input has.
    pub(super) fn read(files: &Files, size: usize) -> Result<Self> {
        let map = files.at(&["model", "vocab"]).and_then(Value::as_object);
        let map = map.ok_or_else(|| files.wrong(Code::Missing, "model.vocab is missing or not an object"))?;
        let mut ids = BTreeMap::new();
        for (text, id) in map {
            let id = id.as_u64().and_then(|n| usize::try_from(n).ok());
            ids.insert(text.as_str(), id.ok_or_else(|| files.wrong(Code::Type, format!("{text:?} has no id")))?);
        }
        Self::new(files, size, &ids)
    }

    pub(super) fn new(files: &Files, size: usize, ids: &BTreeMap<&str, usize>) -> Result<Self> {
        let added = added(files, ids)?;
        let mut tokens: Vec<Option<(String, i32)>> = vec![None; size];
        let model = ids.iter().map(|(text, id)| (*id, (*text).to_owned(), NORMAL));
        let more = added.into_iter().map(|a| match a.special || looks_special(&a.text) {
            true => (a.id, a.text, CONTROL),
            // Such a token is looked for in the text itself, which has plain spaces.
            false => (a.id, a.text.replace('\u{2581}', " "), USER_DEFINED),
        });
        for (id, text, kind) in model.chain(more) {
            let place = tokens.get_mut(id).ok_or_else(|| {
                files.wrong(Code::Value, format!("token {text:?} has id {id}, but config.json says vocab_size {size}"))
            })?;
            if place.as_ref().is_some_and(|(_, other)| *other == NORMAL && kind == NORMAL) {
                return Err(files.wrong(Code::Duplicate, format!("two tokens have id {id}, one of them {text:?}")));
            }
            *place = Some((text, kind));
        }
        let filled = tokens.into_iter().enumerate().map(|(i, t)| t.unwrap_or_else(|| (format!("[PAD{i}]"), UNUSED)));
        let (tokens, kinds) = filled.unzip();
        Ok(Self { tokens, kinds })
    }
}

/// The added tokens of `tokenizer.json`, and the special tokens of `tokenizer_config.json` that are not among them.
pub(super) fn added(files: &Files, ids: &BTreeMap<&str, usize>) -> Result<Vec<Added>> {
    let mut out = Vec::new();
    for entry in files.json.get("added_tokens").and_then(Value::as_array).into_iter().flatten() {
        let id = entry.get("id").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let (Some(id), Some(text)) = (id, entry.get("content").and_then(Value::as_str)) else {
            return Err(files.wrong(Code::Type, format!("an added token without id and content: {entry}")));
        };
        let special = entry.get("special").and_then(Value::as_bool).unwrap_or(false);
        out.push(Added { id, text: text.to_owned(), special });
    }
    let next = |out: &[Added]| out.iter().map(|a| a.id).chain(ids.values().copied()).max().map_or(0, |last| last + 1);
    for text in SPECIAL.iter().filter_map(|key| files.special(key)) {
        if out.iter().all(|a| a.text != text) {
            // One that the vocabulary lacks comes after all others, as transformers numbers it.
            let id = ids.get(text).copied().unwrap_or_else(|| next(&out));
            out.push(Added { id, text: text.to_owned(), special: true });
        }
    }
    Ok(out)
}

/// Tokens that are special by their look, though some checkpoints do not say so.
pub(super) fn looks_special(text: &str) -> bool {
    let within = |a: &str, b: &str| text.starts_with(a) && text.ends_with(b);
    ["<pad>", "<mask>", "<2mass>", "[@BOS@]"].contains(&text)
        || within("<|", "|>")
        || within("<\u{ff5c}", "\u{ff5c}>")
        || within("<unused", ">")
}
