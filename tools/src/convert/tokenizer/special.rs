//! Which ids are special, which of them go around a text, and the chat template.

use super::Files;
use super::vocabulary::added;
use crate::convert::config::Config;
use crate::convert::plan::Plan;
use conpet_formats::Result;
use serde_json::Value;
use std::collections::BTreeMap;

/// A special token: its name in Hugging Face's files and in GGUF.
const NAMES: [(&str, &str); 9] = [
    ("bos", "bos"),
    ("eos", "eos"),
    ("unk", "unknown"),
    // GGUF spells it so.
    ("sep", "seperator"),
    ("pad", "padding"),
    ("cls", "cls"),
    ("mask", "mask"),
    ("eot", "eot"),
    ("eom", "eom"),
];

/// Writes the special ids, what is added around a text, the normalizer's flags and the chat template.
/// `tokens` are the vocabulary's texts.
pub(super) fn write(plan: &mut Plan<'_>, files: &Files, tokens: &[String]) -> Result<()> {
    let ids = tokens.iter().enumerate().map(|(i, t)| (t.as_str(), i)).collect();
    let mut around = Around::read(files);
    let mut found = BTreeMap::new();
    for (name, id) in around.ids(files, &ids)? {
        found.insert(name, id);
    }
    from_config(&mut found, plan.config, tokens.len());
    stops(&mut found, files, tokens.len());
    for (name, spelled) in NAMES {
        // The id of the classifier's token has no key: it is the one at the beginning.
        if let Some(id) = found.get(name).filter(|_| name != "cls") {
            plan.keys.u32(&format!("tokenizer.ggml.{spelled}_token_id"), *id as u32);
        }
    }
    around.flags(files);
    for (name, yes) in &around.add {
        plan.keys.bool(&format!("tokenizer.ggml.add_{name}_token"), *yes);
    }
    let (lowercase, strip_accents) = normalizer(files.json.get("normalizer").unwrap_or(&Value::Null));
    for (key, flag) in [("lowercase", lowercase), ("strip_accents", strip_accents)] {
        if let Some(yes) = flag {
            plan.keys.bool(&format!("tokenizer.ggml.normalizer.{key}"), yes);
        }
    }
    templates(plan, files)
}

/// What a text is put between, as the post-processor of `tokenizer.json` says.
struct Around {
    /// Texts of special tokens, by name.
    texts: BTreeMap<&'static str, String>,
    /// Whether each is added.
    add: BTreeMap<&'static str, bool>,
}

impl Around {
    fn read(files: &Files) -> Self {
        let mut texts = BTreeMap::new();
        for (name, _) in NAMES {
            if let Some(text) = files.special(&format!("{name}_token")) {
                texts.insert(name, text.to_owned());
            }
        }
        // A BERT begins with the classifier's token and ends with the separator.
        for (name, like) in [("bos", "cls"), ("eos", "sep")] {
            if let Some(text) = texts.get(like).cloned() {
                texts.entry(name).or_insert(text);
            }
        }
        let mut out = Self { texts, add: BTreeMap::new() };
        if let Some(post) = files.at(&["post_processor"]) {
            let several = post.get("processors").and_then(Value::as_array);
            for one in several.map_or_else(|| vec![post], |all| all.iter().collect()) {
                out.processor(one);
            }
        }
        out
    }

    fn processor(&mut self, one: &Value) {
        match one.get("type").and_then(Value::as_str) {
            Some("ByteLevel") => ["bos", "eos"].into_iter().for_each(|n| {
                self.add.entry(n).or_insert(false);
            }),
            Some("RobertaProcessing") => {
                self.add.extend(["bos", "eos", "sep"].map(|n| (n, true)));
                for name in ["cls", "sep"] {
                    if let Some(text) = one.get(name).and_then(|p| p.get(0)?.as_str()) {
                        self.texts.entry(name).or_insert_with(|| text.to_owned());
                    }
                }
            }
            Some("TemplateProcessing") => self.template(one),
            _ => {}
        }
    }

    /// Of `[CLS] A [SEP]` the first and the last; of a pair, whether something parts the two texts.
    fn template(&mut self, one: &Value) {
        let list = |key: &str| one.get(key).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let token = |v: Option<&Value>| v.and_then(|v| v.get("SpecialToken")?.get("id")?.as_str().map(String::from));
        let single = list("single");
        let (mut first, mut last) = (None, None);
        if single.len() > 1 {
            first = token(single.first());
            last = token(single.last());
        }
        if let Some(first) = &first {
            let known = |t: &Self| ["bos", "cls"].iter().any(|n| t.texts.get(n) == Some(first));
            if !known(self) {
                ["bos", "cls"].into_iter().for_each(|n| {
                    self.texts.entry(n).or_insert_with(|| first.clone());
                });
            }
            self.add.insert("bos", known(self));
        }
        if let Some(last) = &last {
            if let Some(other) = self.texts.insert("eos", last.clone()).filter(|other| other != last) {
                let free = ["eot", "eom"].into_iter().find(|n| !self.texts.contains_key(n));
                free.map(|n| self.texts.insert(n, other));
            }
            self.add.insert("eos", true);
        }
        let mut pair = list("pair");
        if first.is_some() && token(pair.first()) == first {
            pair = &pair[1..];
        }
        if last.is_some() && token(pair.last()) == last {
            pair = &pair[..pair.len() - 1];
        }
        let sequence = |v: Option<&Value>| v.and_then(|v| v.get("Sequence")?.get("id")?.as_str().map(String::from));
        if pair.len() > 2
            && sequence(pair.first()).as_deref() == Some("A")
            && sequence(pair.last()).as_deref() == Some("B")
        {
            let between = &pair[1..pair.len() - 1];
            let parts = |t: Option<String>| {
                t.is_some_and(|t| ["sep", "eos"].iter().any(|n| self.texts.get(n).is_some_and(|x| *x == t)))
            };
            let add =
                parts(token(between.first())) && last.is_none() || between.len() == 2 && parts(token(between.get(1)));
            self.add.insert("sep", add);
            if let Some(eos) = self.texts.get("eos").cloned().filter(|_| add) {
                self.texts.entry("sep").or_insert(eos);
            }
        }
    }

    /// The ids of the texts: among the added tokens, or else in the vocabulary.
    fn ids(&self, files: &Files, ids: &BTreeMap<&str, usize>) -> Result<Vec<(&'static str, usize)>> {
        let added = added(files, ids)?;
        let find = |text: &str| added.iter().find(|a| a.text == text).map(|a| a.id).or_else(|| ids.get(text).copied());
        Ok(self.texts.iter().filter_map(|(name, text)| Some((*name, find(text)?))).collect())
    }

    /// What `tokenizer_config.json` says of tokens around a text, where the post-processor says nothing.
    fn flags(&mut self, files: &Files) {
        for name in ["bos", "eos", "sep"] {
            if let Some(yes) = files.config.get(&format!("add_{name}_token")).and_then(Value::as_bool) {
                self.add.entry(name).or_insert(yes);
            }
        }
        // Byte pairs without a post-processor have nothing put in front, whatever a reader takes by their name.
        let byte_pairs = files.at(&["model", "type"]).and_then(Value::as_str) == Some("BPE");
        if byte_pairs && files.at(&["model", "byte_fallback"]) != Some(&Value::Bool(true)) {
            self.add.entry("bos").or_insert(false);
        }
    }
}

/// Ids that only `config.json` knows.
fn from_config(found: &mut BTreeMap<&'static str, usize>, config: &Config, size: usize) {
    for (name, _) in NAMES {
        let id = config.get(&format!("{name}_token_id")).and_then(Value::as_u64).filter(|id| *id < size as u64);
        if let Some(id) = id {
            found.entry(name).or_insert(id as usize);
        }
    }
}

/// More tokens that end an answer, as `generation_config.json` lists them.
fn stops(found: &mut BTreeMap<&'static str, usize>, files: &Files, size: usize) {
    let listed = files.generation.get("eos_token_id").and_then(Value::as_array).into_iter().flatten();
    let mut more: Vec<usize> =
        listed.filter_map(|v| v.as_u64()).map(|id| id as usize).filter(|id| *id < size).collect();
    more.retain(|id| ["eos", "eot", "eom"].iter().all(|n| found.get(n) != Some(id)));
    for name in ["eot", "eom"] {
        if !found.contains_key(name) && !more.is_empty() {
            found.insert(name, more.remove(0));
        }
    }
}

/// What a normalizer does to letters: (lowercase, strip accents).
fn normalizer(v: &Value) -> (Option<bool>, Option<bool>) {
    let flag = |key: &str| v.get(key).and_then(Value::as_bool);
    match v.get("type").and_then(Value::as_str) {
        Some("Lowercase") => (Some(true), None),
        Some("StripAccents") => (None, Some(true)),
        Some("BertNormalizer") => (flag("lowercase"), flag("strip_accents")),
        Some("Sequence") => {
            let all = v.get("normalizers").and_then(Value::as_array).into_iter().flatten().map(normalizer);
            all.fold((None, None), |(l, s), (l2, s2)| (l2.or(l), s2.or(s)))
        }
        _ => (None, None),
    }
}

fn templates(plan: &mut Plan<'_>, files: &Files) -> Result<()> {
    let mut names = Vec::new();
    for (name, text) in files.templates()? {
        if name == "default" {
            plan.keys.str("tokenizer.chat_template", &text);
            continue;
        }
        let name: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
        if !name.is_empty() && !names.contains(&name) {
            plan.keys.str(&format!("tokenizer.chat_template.{name}"), &text);
            names.push(name);
        }
    }
    if !names.is_empty() {
        plan.keys.strings("tokenizer.chat_templates", &names);
    }
    Ok(())
}
