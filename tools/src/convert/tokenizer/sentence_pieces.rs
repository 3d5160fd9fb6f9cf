//! SentencePiece vocabularies with byte pair encoding, as Llama 2, Gemma and Phi-3 have them: from `tokenizer.model`,
//! or from a `tokenizer.json` that was made of one.

use super::vocabulary::{BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, added, looks_special};
use super::{Files, special};
use crate::convert::config::object;
use crate::convert::plan::Plan;
use conpet_formats::bytes::Cursor;
use conpet_formats::{Code, Error, Result, fs};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The score of a token that no pair makes.
const NEVER: f32 = -1000.0;
/// The score of an id without a token.
const NOBODY: f32 = -10000.0;

/// Whether a folder's tokenizer is one of these.
pub(in crate::convert) fn is_sentence_pieces(folder: &Path) -> Result<bool> {
    let model = object(&folder.join("tokenizer.json"))?;
    let bytes = model.as_ref().and_then(|j| j.get("model")?.get("byte_fallback")?.as_bool());
    Ok(folder.join("tokenizer.model").exists() || bytes == Some(true))
}

/// Writes the tokenizer. `space` says whether a text gets a space in front, if the family knows better than the files.
pub(in crate::convert) fn sentence_pieces(plan: &mut Plan<'_>, folder: &Path, space: Option<bool>) -> Result<()> {
    let files = Files::open(folder)?;
    let size = plan.config.num("vocab_size")?;
    let nobody = |i| Piece { text: format!("[PAD{i}]"), score: NOBODY, kind: UNUSED };
    let mut pieces: Vec<Piece> = (0..size).map(nobody).collect();
    let path = folder.join("tokenizer.model");
    let in_front = match path.exists() {
        true => Some(of_model(&fs::read(&path)?, &mut pieces).map_err(|e| e.in_file(&path))?),
        false => of_json(&files, &mut pieces)?,
    };
    more(&files, &mut pieces)?;
    plan.keys.str("tokenizer.ggml.model", "llama").str("tokenizer.ggml.pre", "default");
    let said = files.config.get("add_prefix_space").and_then(Value::as_bool);
    // Absent means a space.
    if let Some(space) = space.or(said).or(in_front.filter(|yes| !yes)) {
        plan.keys.bool("tokenizer.ggml.add_space_prefix", space);
    }
    let texts: Vec<String> = pieces.iter().map(|p| p.text.clone()).collect();
    plan.keys
        .strings("tokenizer.ggml.tokens", &texts)
        .f32s("tokenizer.ggml.scores", &pieces.iter().map(|p| p.score).collect::<Vec<_>>())
        .i32s("tokenizer.ggml.token_type", &pieces.iter().map(|p| p.kind).collect::<Vec<_>>());
    special::write(plan, &files, &texts)
}

#[derive(Debug, Clone)]
struct Piece {
    text: String,
    score: f32,
    kind: i32,
}

/// The tokens that were added to the pieces. Those beyond the vocabulary cannot be embedded and are left out.
fn more(files: &Files, pieces: &mut [Piece]) -> Result<()> {
    let mut put = |id: usize, text: &str, special: bool| {
        let control = special || looks_special(text);
        let (text, kind) = match control {
            true => (text.to_owned(), CONTROL),
            false => (text.replace('\u{2581}', " "), USER_DEFINED),
        };
        // What stands for the unknown, and what stands for a byte, keep their kind.
        if let Some(place) = pieces.get_mut(id) {
            let kind = if [UNKNOWN, BYTE].contains(&place.kind) && place.text == text { place.kind } else { kind };
            *place = Piece { text, score: NEVER, kind };
        }
    };
    for (text, id) in object(&files.folder.join("added_tokens.json"))?.unwrap_or_default() {
        id.as_u64().into_iter().for_each(|id| put(id as usize, &text, false));
    }
    for a in added(files, &BTreeMap::new())?.iter().filter(|_| files.json.contains_key("added_tokens")) {
        put(a.id, &a.text, a.special);
    }
    let listed = files.config.get("added_tokens_decoder").and_then(Value::as_object);
    for (id, token) in listed.into_iter().flatten() {
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        if let (Ok(id), Some(text)) = (id.parse(), token.get("content").and_then(Value::as_str)) {
            put(id, text, special);
        }
    }
    Ok(())
}

/// The pieces of a `tokenizer.json`. It knows the order of merges where a model knows scores: the better the merge
/// that makes a token, the higher its score. Returns whether a space is put in front.
fn of_json(files: &Files, pieces: &mut [Piece]) -> Result<Option<bool>> {
    let map = files.at(&["model", "vocab"]).and_then(Value::as_object);
    let map = map.ok_or_else(|| files.wrong(Code::Missing, "model.vocab is missing or not an object"))?;
    let mut ranks = BTreeMap::new();
    let merges = files.at(&["model", "merges"]).and_then(Value::as_array).into_iter().flatten();
    for (rank, merge) in merges.enumerate() {
        let whole = match merge {
            Value::String(s) => s.splitn(2, ' ').collect::<String>(),
            Value::Array(two) => two.iter().filter_map(Value::as_str).collect(),
            other => return Err(files.wrong(Code::Type, format!("{other} is no merge"))),
        };
        ranks.entry(whole).or_insert(rank);
    }
    let unknown = files.at(&["model", "unk_token"]).and_then(Value::as_str);
    for (text, id) in map {
        let id = id.as_u64().and_then(|n| usize::try_from(n).ok());
        let Some(place) = id.and_then(|id| pieces.get_mut(id)) else {
            return Err(files.wrong(Code::Value, format!("{text:?} has no id below the vocab_size of config.json")));
        };
        let byte = text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        let kind = if Some(text.as_str()) == unknown {
            UNKNOWN
        } else if byte {
            BYTE
        } else {
            NORMAL
        };
        let score = ranks.get(text).map_or(if kind == NORMAL { NEVER * 1000.0 } else { 0.0 }, |rank| -(*rank as f32));
        *place = Piece { text: text.clone(), score, kind };
    }
    let steps = |path: &str, list: &str| match files.at(&[path]) {
        Some(v) if v.get("type") == Some(&json!("Sequence")) => {
            v.get(list).and_then(Value::as_array).cloned().unwrap_or_default()
        }
        Some(v) => vec![v.clone()],
        None => Vec::new(),
    };
    let front = |v: &Value| match v.get("type").and_then(Value::as_str) {
        Some("Prepend") => v.get("prepend") == Some(&json!("\u{2581}")),
        Some("Metaspace") => match v.get("prepend_scheme").and_then(Value::as_str) {
            Some(scheme) => scheme != "never",
            None => v.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true),
        },
        _ => false,
    };
    let all = [steps("normalizer", "normalizers"), steps("pre_tokenizer", "pretokenizers")].concat();
    Ok(Some(all.iter().any(front)))
}

/// The pieces of a `tokenizer.model`, a message of `sentencepiece_model.proto`. Returns whether a space is put in
/// front.
fn of_model(bytes: &[u8], pieces: &mut [Piece]) -> Result<bool> {
    let (mut id, mut in_front, mut kind_of_model) = (0, true, 1);
    each(bytes, |field, value| {
        match (field, value) {
            (1, Field::Bytes(piece)) => {
                let (mut text, mut score, mut kind) = (String::new(), 0.0, NORMAL);
                each(piece, |field, value| {
                    match (field, value) {
                        (1, Field::Bytes(b)) => {
                            text = String::from_utf8(b.to_vec())
                                .map_err(|_| Error::new(Code::Text, format!("piece {id} is not UTF-8")))?;
                        }
                        (2, Field::Word(w)) => score = f32::from_bits(w),
                        (3, Field::Number(n)) => kind = n as i32,
                        _ => {}
                    }
                    Ok(())
                })?;
                if let Some(place) = pieces.get_mut(id) {
                    *place = Piece { text, score, kind };
                }
                id += 1;
            }
            (2, Field::Bytes(trainer)) => each(trainer, |field, value| {
                if let (3, Field::Number(n)) = (field, value) {
                    kind_of_model = n;
                }
                Ok(())
            })?,
            (3, Field::Bytes(normalizer)) => each(normalizer, |field, value| {
                if let (3, Field::Number(n)) = (field, value) {
                    in_front = n != 0;
                }
                Ok(())
            })?,
            _ => {}
        }
        Ok(())
    })?;
    if kind_of_model != 2 {
        return Err(Error::new(Code::Unsupported, "the model is not of type BPE")
            .hint("take a checkpoint with the family's usual tokenizer"));
    }
    Ok(in_front)
}

/// A value of a protocol buffer.
#[derive(Clone, Copy)]
enum Field<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    /// Eight bytes, which nothing here has.
    Long,
}

/// Calls `f` with the number and value of each field of a message.
fn each(bytes: &[u8], mut f: impl FnMut(u64, Field<'_>) -> Result<()>) -> Result<()> {
    let mut c = Cursor::new(bytes);
    while c.offset() < bytes.len() {
        let at = c.offset() as u64;
        let tag = varint(&mut c)?;
        let value = match tag & 7 {
            0 => Field::Number(varint(&mut c)?),
            1 => c.take(8).map(|_| Field::Long)?,
            2 => {
                let len = varint(&mut c)?;
                Field::Bytes(c.take(len)?)
            }
            5 => Field::Word(c.u32()?),
            other => return Err(Error::new(Code::Type, format!("a field of wire type {other}")).at(at)),
        };
        f(tag >> 3, value)?;
    }
    Ok(())
}

fn varint(c: &mut Cursor<'_>) -> Result<u64> {
    let at = c.offset() as u64;
    let mut out = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = c.u8()?;
        out |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(out);
        }
    }
    Err(Error::new(Code::Value, "a number of more than ten bytes").at(at))
}
