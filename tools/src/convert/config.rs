//! `config.json`, read key by key: a key that is neither read nor known to change nothing is refused at the end.

use conpet_formats::{Code, Error, Result, fs};
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Keys that change nothing of what a base computes when it answers.
const WITHOUT_EFFECT: &[&str] = &[
    // Who wrote the file, how the weights are stored, and how code is to run them.
    "_name_or_path",
    "_attn_implementation",
    "_attn_implementation_autoset",
    "architectures",
    "auto_map",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "transformers.js_config",
    "model_type",
    "use_cache",
    "cache_implementation",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "torchscript",
    "use_flash_attn",
    "use_bfloat16",
    "unsloth_version",
    "unsloth_fixed",
    // Training.
    "attention_dropout",
    "attention_probs_dropout_prob",
    "attn_pdrop",
    "classifier_dropout",
    "classifier_bias",
    "classifier_activation",
    "decoder_bias",
    "deterministic_flash_attn",
    "embd_pdrop",
    "embedding_dropout",
    "gradient_checkpointing",
    "hidden_dropout",
    "hidden_dropout_prob",
    "initializer_cutoff_factor",
    "initializer_range",
    "mlp_dropout",
    "reference_compile",
    "repad_logits_with_grad",
    "resid_pdrop",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    // Cut matrices for several devices only.
    "pretraining_tp",
    // What the tokenizer's own files say better.
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "unk_token_id",
    "sep_token_id",
    "cls_token_id",
    "mask_token_id",
    "decoder_start_token_id",
    "tokenizer_class",
    // Of heads that are not converted.
    "id2label",
    "label2id",
    "problem_type",
    "num_labels",
    "finetuning_task",
];

/// A `config.json`.
#[derive(Debug)]
pub(crate) struct Config {
    path: PathBuf,
    values: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl Config {
    /// Reads the file of a folder.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let values = object(&path)?.ok_or_else(|| {
            Error::new(Code::Missing, "the folder has no config.json")
                .in_file(folder)
                .hint("give the folder of a Hugging Face checkpoint: config.json, tokenizer.json and *.safetensors")
        })?;
        Ok(Self { path, values, read: RefCell::default() })
    }

    /// The class of the checkpoint, as transformers calls it.
    pub(crate) fn class(&self) -> Result<&str> {
        let first = self.values.get("architectures").and_then(|a| a.get(0)).and_then(Value::as_str);
        first.ok_or_else(|| self.wrong(Code::Missing, "architectures", "names no class"))
    }

    /// A value that is there and not null; it counts as read from now on.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.values.get(key).filter(|v| !v.is_null())
    }

    /// A whole number, if the key is there.
    pub(crate) fn opt(&self, key: &str) -> Result<Option<usize>> {
        let whole = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n < 1 << 31);
        self.typed(key, "a whole number", whole)
    }

    /// A whole number that must be there.
    pub(crate) fn num(&self, key: &str) -> Result<usize> {
        self.opt(key)?.ok_or_else(|| self.wrong(Code::Missing, key, "is missing"))
    }

    /// A number, if the key is there.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a number", Value::as_f64)
    }

    /// A bool, or its default.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.typed(key, "true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// A text, if the key is there.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a text", Value::as_str)
    }

    /// Refuses a key unless it is absent, null, or one of these values.
    pub(crate) fn only(&self, key: &str, supported: &[Value]) -> Result<()> {
        match self.get(key) {
            Some(v) if !supported.contains(v) => {
                let known = supported.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
                Err(self.wrong(Code::Unsupported, key, &format!("is {v}, only {known} is supported")))
            }
            _ => Ok(()),
        }
    }

    fn typed<'a, T>(&'a self, key: &str, what: &str, as_t: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(v) = self.get(key) else { return Ok(None) };
        as_t(v).map(Some).ok_or_else(|| self.wrong(Code::Type, key, &format!("is {v} where {what} is needed")))
    }

    /// An error about a key.
    pub(crate) fn wrong(&self, code: Code, key: &str, what: &str) -> Error {
        let e = Error::new(code, format!("{key} {what}")).in_file(&self.path);
        match code {
            Code::Unsupported => e.hint("it changes what the model computes; take a checkpoint without it"),
            _ => e.hint("the checkpoint is incomplete or damaged; download it again"),
        }
    }

    /// Refuses a key that nobody has read.
    pub(crate) fn all_read(&self) -> Result<()> {
        let read = self.read.borrow();
        let known = |k: &str| read.contains(k) || WITHOUT_EFFECT.contains(&k);
        match self.values.iter().find(|(k, v)| !v.is_null() && !known(k)) {
            None => Ok(()),
            Some((k, v)) => Err(self.wrong(Code::Unsupported, k, &format!("is {v}, and this key is not known"))),
        }
    }
}

/// The object in a JSON file; `None` if there is no such file.
pub(crate) fn object(path: &Path) -> Result<Option<Map<String, Value>>> {
    match json(path)? {
        None => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(Error::new(Code::Type, "the file is not a JSON object").in_file(path)),
    }
}

/// What a JSON file holds; `None` if there is no such file.
pub(crate) fn json(path: &Path) -> Result<Option<Value>> {
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read_text(path)?;
    let wrong = |e| Error::new(Code::Value, format!("not valid JSON: {e}")).in_file(path).hint("download it again");
    serde_json::from_str(&text).map(Some).map_err(wrong)
}
