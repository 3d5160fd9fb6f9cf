//! The tables of a GGUF, made of a `tokenizer.json` as llama.cpp's converter makes them. Only what the oracle needs.

use conpet_formats::gguf::Writer;
use serde_json::Value;

/// What a vocabulary's `tokenizer.json` does not say in a GGUF's words.
pub(crate) struct Kind {
    /// `tokenizer.ggml.model`
    pub(crate) model: &'static str,
    /// `tokenizer.ggml.pre`
    pub(crate) pre: &'static str,
}

/// The bytes of a GGUF with these tables and nothing else.
pub(crate) fn gguf(json: &Value, kind: &Kind) -> Vec<u8> {
    let vocab = json["model"]["vocab"].as_object().expect("a vocabulary by name");
    let added = json["added_tokens"].as_array().expect("added tokens");
    let id = |v: &Value| v.as_u64().expect("an id") as usize;
    let last = vocab.values().map(id).chain(added.iter().map(|a| id(&a["id"]))).max().expect("tokens");
    let mut tokens = vec![(String::new(), 5i32); last + 1];
    for (spelling, i) in vocab {
        let byte = kind.model == "llama" && spelling.len() == 6 && spelling.starts_with("<0x");
        let spelling = match kind.model {
            "bert" => match spelling.strip_prefix("##") {
                Some(rest) => rest.to_owned(),
                None => format!("\u{2581}{spelling}"),
            },
            _ => spelling.clone(),
        };
        tokens[id(i)] = (spelling, if byte { 6 } else { 1 });
    }
    for a in added {
        let spelling = a["content"].as_str().expect("a token's text");
        let special = a["special"] == true;
        // What the file defines is found in the text itself, where spaces are spaces.
        let spelling = if special { spelling.to_owned() } else { spelling.replace('\u{2581}', " ") };
        let unknown = Some(a["content"].as_str()) == Some(json["model"]["unk_token"].as_str());
        let kind = if unknown && kind.model == "llama" {
            2
        } else if special {
            3
        } else {
            4
        };
        tokens[id(&a["id"])] = (spelling, kind);
    }
    let mut w = Writer::new();
    w.str("tokenizer.ggml.model", kind.model)
        .str("tokenizer.ggml.pre", kind.pre)
        .strings("tokenizer.ggml.tokens", &tokens.iter().map(|t| t.0.as_str()).collect::<Vec<_>>())
        .i32s("tokenizer.ggml.token_type", &tokens.iter().map(|t| t.1).collect::<Vec<_>>())
        .u32("tokenizer.ggml.bos_token_id", 0)
        .u32("tokenizer.ggml.seperator_token_id", 0);
    if let Some(i) = json["model"]["unk_token"].as_str().and_then(|t| vocab.get(t)) {
        w.u32("tokenizer.ggml.unknown_token_id", id(i) as u32);
    }
    // Older files write the two parts as one string.
    let parts = |m: &Value| match m {
        Value::String(s) => s.split(' ').map(str::to_owned).collect::<Vec<_>>(),
        _ => m.as_array().expect("two parts").iter().filter_map(Value::as_str).map(str::to_owned).collect(),
    };
    let merges: Vec<Vec<String>> = json["model"]["merges"].as_array().into_iter().flatten().map(parts).collect();
    match kind.model {
        "gpt2" => {
            w.strings("tokenizer.ggml.merges", &merges.iter().map(|m| m.join(" ")).collect::<Vec<_>>());
        }
        "llama" => {
            let prepends = json["normalizer"].to_string().contains("Prepend");
            w.bool("tokenizer.ggml.add_space_prefix", prepends);
            // The merges are listed in the order of the scores, which is all that is known of them.
            let mut scores = vec![-1e9f32; tokens.len()];
            for (rank, m) in merges.iter().enumerate().rev() {
                if let Some(i) = vocab.get(&m.concat()) {
                    scores[id(i)] = -(rank as f32);
                }
            }
            w.f32s("tokenizer.ggml.scores", &scores);
        }
        _ => {}
    }
    let mut out = Vec::new();
    w.finish(&mut out, |_| Ok(Vec::<u8>::new())).expect("tables are written");
    out
}
