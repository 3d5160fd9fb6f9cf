//! `tokenize`: how the base reads a text.

use super::print;
use crate::base::Base;
use crate::cli::TokenizeArgs;
use crate::error::{Code, Error, Result};
use serde_json::json;
use std::io::Read;

pub(super) fn run(a: &TokenizeArgs) -> Result<()> {
    let base = Base::open(&a.model)?;
    let text = match (&a.text, &a.file) {
        (Some(t), _) => t.clone(),
        (None, Some(path)) => conpet_formats::fs::read_text(path)?,
        (None, None) => {
            let mut text = String::new();
            let read = std::io::stdin().lock().read_to_string(&mut text);
            read.map_err(|e| super::bad_text(e).in_file("standard input"))?;
            text
        }
    };
    let name = a.file.as_ref().map_or_else(|| "the text".into(), |f| f.display().to_string());
    if text.is_empty() {
        return Err(Error::new(Code::Missing, "there is no text").in_file(name).hint("give at least one character"));
    }
    let tokens = base.tokenizer.encode(&text, a.special).map_err(|e| e.in_file(name))?;
    let texts: Vec<String> = tokens.iter().map(|t| base.tokenizer.decode_lossy(&[*t])).collect();
    base.check()?;
    if a.json {
        return print(&json!(tokens).to_string());
    }
    for (t, text) in tokens.iter().zip(texts) {
        print(&format!("{t:>7}  {text:?}"))?;
    }
    Ok(())
}
