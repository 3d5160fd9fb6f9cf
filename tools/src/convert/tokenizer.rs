//! Tokenizers: what a checkpoint's tokenizer files say, as the `tokenizer.*` keys of a base.
//!
//! `tokenizer.json` has the vocabulary, `tokenizer_config.json` (with `special_tokens_map.json` behind it) names the
//! special tokens and holds the chat template.

mod byte_pairs;
mod pre;
mod sentence_pieces;
mod special;
mod vocabulary;
mod word_pieces;

pub(super) use byte_pairs::byte_pairs;
pub(super) use sentence_pieces::{is_sentence_pieces, sentence_pieces};
pub(super) use word_pieces::word_pieces;

use super::config::{json, object};
use conpet_formats::{Code, Error, Result};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The files about a tokenizer.
struct Files {
    folder: PathBuf,
    /// `tokenizer.json`; empty if there is none.
    json: Map<String, Value>,
    /// `tokenizer_config.json`, filled up from `special_tokens_map.json`.
    config: Map<String, Value>,
    /// `generation_config.json`.
    generation: Map<String, Value>,
}

impl Files {
    fn open(folder: &Path) -> Result<Self> {
        let read = |name: &str| Ok::<_, Error>(object(&folder.join(name))?.unwrap_or_default());
        let mut config = read("tokenizer_config.json")?;
        for (key, value) in read("special_tokens_map.json")? {
            if config.get(&key).is_none_or(Value::is_null) {
                config.insert(key, value);
            }
        }
        let (json, generation) = (read("tokenizer.json")?, read("generation_config.json")?);
        Ok(Self { folder: folder.to_owned(), json, config, generation })
    }

    /// A part of `tokenizer.json` by its path, if it is there and not null.
    fn at(&self, path: &[&str]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        let start = self.json.get(*first)?;
        rest.iter().try_fold(start, |v, key| v.get(key)).filter(|v| !v.is_null())
    }

    /// An error about `tokenizer.json`.
    fn wrong(&self, code: Code, what: impl Into<String>) -> Error {
        let e = Error::new(code, what).in_file(self.folder.join("tokenizer.json"));
        match code {
            Code::Unsupported => e.hint("take a checkpoint with the family's usual tokenizer"),
            _ => e.hint("the file is incomplete or damaged; download it again"),
        }
    }

    /// The text of a special token, such as `bos_token`: a text, or an object with `content`.
    fn special(&self, key: &str) -> Option<&str> {
        let v = self.config.get(key)?;
        v.as_str().or_else(|| v.get("content")?.as_str())
    }

    /// The chat templates, by name; the usual one is `default`.
    fn templates(&self) -> Result<Vec<(String, String)>> {
        let one = |text: &str| vec![("default".to_owned(), text.to_owned())];
        match self.config.get("chat_template") {
            Some(Value::String(text)) => return Ok(one(text)),
            Some(Value::Array(all)) => {
                let pair = |t: &Value| Some((t.get("name")?.as_str()?.into(), t.get("template")?.as_str()?.into()));
                return Ok(all.iter().filter_map(pair).collect());
            }
            _ => {}
        }
        let jinja = self.folder.join("chat_template.jinja");
        if jinja.exists() {
            return Ok(one(&conpet_formats::fs::read_text(&jinja)?));
        }
        let json = json(&self.folder.join("chat_template.json"))?;
        Ok(json.as_ref().and_then(|j| j.get("chat_template")?.as_str()).map(one).unwrap_or_default())
    }
}
