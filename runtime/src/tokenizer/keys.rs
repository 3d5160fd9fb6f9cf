//! The keys of a file's tokenizer, read one by one. A key that nobody has read is refused at the end.

use crate::error::{Code, Error, Result};
use conpet_formats::gguf::{Array, Gguf, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// Keys that may be there and change nothing, each with the reason.
const WITHOUT_EFFECT: &[&str] = &[
    // The tables of another kind of tokenizer, which llama.cpp does not read for this one either.
    "tokenizer.ggml.scores",
    "tokenizer.ggml.merges",
    "tokenizer.ggml.pre",
    // Sequences of a batch lie one after another here, so none is filled up.
    "tokenizer.ggml.padding_token_id",
    // Hidden words are for training an encoder, the gap in a text for editors; no program here has either.
    "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.ggml.fim_suf_token_id",
    "tokenizer.ggml.fim_mid_token_id",
    "tokenizer.ggml.prefix_token_id",
    "tokenizer.ggml.suffix_token_id",
    "tokenizer.ggml.middle_token_id",
    // These two stand between or before whole texts of a kind that is not written here.
    "tokenizer.ggml.cls_token_id",
    "tokenizer.ggml.seperator_token_id",
    // What is not known falls apart into bytes, in a byte-level vocabulary.
    "tokenizer.ggml.unknown_token_id",
    // The table of token types says how many rows it has.
    "tokenizer.ggml.token_type_count",
    // The same tables again, as another program writes them.
    "tokenizer.huggingface.json",
    // Rendered by `chat`; the others are templates by name, and only the default one is ever used.
    "tokenizer.chat_template",
    "tokenizer.chat_templates",
];

/// Templates by name, of which see [`WITHOUT_EFFECT`].
const NAMED_TEMPLATE: &str = "tokenizer.chat_template.";

/// Metadata whose name begins with `tokenizer.`.
pub(super) struct Keys<'a> {
    gguf: &'a Gguf<'a>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(gguf: &'a Gguf<'a>) -> Self {
        Self { gguf, read: RefCell::default() }
    }

    /// The whole name of a key of `tokenizer.ggml`, which counts as read from now on.
    fn name(&self, key: &str) -> String {
        let name = format!("tokenizer.ggml.{key}");
        self.read.borrow_mut().insert(name.clone());
        name
    }

    pub(super) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.gguf.str(&self.name(key))
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.gguf.bool(&self.name(key))
    }

    pub(super) fn array(&self, key: &str) -> Result<Option<Array<'a>>> {
        self.gguf.array(&self.name(key))
    }

    /// An array that must be there.
    pub(super) fn required(&self, key: &str) -> Result<Array<'a>> {
        self.array(key)?.ok_or_else(|| {
            Error::new(Code::Missing, format!("the file lacks the key tokenizer.ggml.{key}"))
                .hint("the model was converted incompletely; convert it again")
        })
    }

    /// The id of a token in a vocabulary of `n`.
    pub(super) fn id(&self, key: &str, n: usize) -> Result<Option<u32>> {
        let name = self.name(&format!("{key}_token_id"));
        match self.gguf.u32(&name)? {
            Some(id) if id as usize >= n => {
                Err(Error::new(Code::Value, format!("{name} is {id}, but there are {n} tokens")))
            }
            other => Ok(other),
        }
    }

    /// Refuses a switch that is on, because nothing here would obey it.
    pub(super) fn off(&self, key: &str, hint: &str) -> Result<()> {
        match self.bool(key)? {
            Some(true) => {
                let what = format!("tokenizer.ggml.{key} is true, which is not supported for this kind of tokenizer");
                Err(Error::new(Code::Unsupported, what).hint(hint))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a list that is not empty, for the same reason.
    pub(super) fn empty(&self, key: &str, hint: &str) -> Result<()> {
        match self.gguf.get(&self.name(key)) {
            None => Ok(()),
            Some(Value::Array(a)) if a.is_empty() => Ok(()),
            Some(_) => {
                let what = format!("the key tokenizer.ggml.{key} is not supported for this kind of tokenizer");
                Err(Error::new(Code::Unsupported, what).hint(hint))
            }
        }
    }

    /// The chat template, and what the model is called: some of a token's manners depend on them.
    pub(super) fn template(&self) -> Result<&'a str> {
        Ok(self.gguf.str("tokenizer.chat_template")?.unwrap_or_default())
    }

    pub(super) fn model_name(&self) -> Result<String> {
        Ok(self.gguf.str("general.name")?.unwrap_or_default().to_lowercase())
    }

    /// Refuses a key that nobody has read.
    pub(super) fn all_read(&self) -> Result<()> {
        let read = self.read.borrow();
        let known = |key: &str| read.contains(key) || WITHOUT_EFFECT.contains(&key) || key.starts_with(NAMED_TEMPLATE);
        match self.gguf.metadata().find(|(key, _)| key.starts_with("tokenizer.") && !known(key)) {
            None => Ok(()),
            Some((key, _)) => Err(Error::new(Code::Unsupported, format!("the key {key} is not known"))
                .in_section("metadata")
                .hint("it may change how text is cut into tokens, so the base is not run; take one without this key")),
        }
    }
}
