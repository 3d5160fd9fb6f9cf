//! WordPiece vocabularies, as BERT has them.

use super::vocabulary::{CONTROL, Vocabulary};
use super::{Files, special};
use crate::convert::plan::Plan;
use conpet_formats::{Code, Result, fs};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Writes the tokenizer of a BERT. In GGUF a piece that begins a word begins with U+2581, and one that continues a
/// word stands bare; in WordPiece it is the other way around.
pub(in crate::convert) fn word_pieces(plan: &mut Plan<'_>, folder: &Path) -> Result<()> {
    let mut files = Files::open(folder)?;
    let size = plan.config.num("vocab_size")?;
    let list = folder.join("vocab.txt");
    let text;
    let vocabulary = if files.json.is_empty() && list.exists() {
        text = fs::read_text(&list)?;
        of_list(&mut files, &text, size)?
    } else {
        check(&files)?;
        Vocabulary::read(&files, size)?
    };
    let lower = files.at(&["normalizer", "lowercase"]) == Some(&Value::Bool(true));
    let piece = |(text, kind): (&String, &i32)| match text.strip_prefix("##") {
        _ if *kind == CONTROL => text.clone(),
        Some(rest) => rest.to_owned(),
        None => format!("\u{2581}{text}"),
    };
    let pieces: Vec<String> = vocabulary.tokens.iter().zip(&vocabulary.kinds).map(piece).collect();
    plan.keys
        .u32("tokenizer.ggml.token_type_count", plan.config.opt("type_vocab_size")?.unwrap_or(1) as u32)
        .str("tokenizer.ggml.model", "bert")
        // WordPiece splits at spaces and punctuation under every name; this is the one that llama.cpp gives it.
        .str("tokenizer.ggml.pre", if lower { "jina-v2-en" } else { "default" })
        .strings("tokenizer.ggml.tokens", &pieces)
        .i32s("tokenizer.ggml.token_type", &vocabulary.kinds);
    special::write(plan, &files, &vocabulary.tokens)
}

/// Refuses a tokenizer that is no BERT's.
fn check(files: &Files) -> Result<()> {
    let expect = |path: &[&str], values: &[Value]| match files.at(path) {
        Some(v) if !values.contains(v) => {
            Err(files.wrong(Code::Unsupported, format!("{} is {v}, not as BERT has it", path.join("."))))
        }
        _ => Ok(()),
    };
    expect(&["model", "type"], &[json!("WordPiece")])?;
    expect(&["model", "continuing_subword_prefix"], &[json!("##")])?;
    expect(&["normalizer", "type"], &[json!("BertNormalizer")])?;
    expect(&["normalizer", "clean_text"], &[json!(true)])?;
    expect(&["normalizer", "handle_chinese_chars"], &[json!(true)])?;
    expect(&["pre_tokenizer", "type"], &[json!("BertPreTokenizer")])
}

/// The vocabulary of a `vocab.txt`, one piece a line; the rest as transformers takes it for a BERT.
fn of_list(files: &mut Files, text: &str, size: usize) -> Result<Vocabulary> {
    let ids: BTreeMap<&str, usize> = text.lines().enumerate().map(|(i, line)| (line, i)).collect();
    for (key, token) in [
        ("unk_token", "[UNK]"),
        ("sep_token", "[SEP]"),
        ("pad_token", "[PAD]"),
        ("cls_token", "[CLS]"),
        ("mask_token", "[MASK]"),
    ] {
        if files.special(key).is_none() {
            files.config.insert(key.to_owned(), json!(token));
        }
    }
    let lower = files.config.get("do_lower_case").and_then(Value::as_bool).unwrap_or(true);
    files.json.insert("normalizer".into(), json!({"type": "BertNormalizer", "lowercase": lower}));
    let one = |token: &str| json!({"SpecialToken": {"id": token}});
    let (cls, sep) = (files.special("cls_token").unwrap_or("[CLS]"), files.special("sep_token").unwrap_or("[SEP]"));
    let (a, b) = (json!({"Sequence": {"id": "A"}}), json!({"Sequence": {"id": "B"}}));
    let post = json!({
        "type": "TemplateProcessing",
        "single": [one(cls), a, one(sep)],
        "pair": [one(cls), a, one(sep), b, one(sep)],
    });
    files.json.insert("post_processor".into(), post);
    Vocabulary::new(files, size, &ids)
}
