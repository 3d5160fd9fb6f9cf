//! `tokenize`: shows the tokens of a text.

use crate::base::Base;
use crate::error::{Code, Error, Result};
use clap::Args;
use conpet_program::print::print;
use conpet_program::{BaseArgs, ExitStatus};
use serde_json::json;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;

/// Arguments of `tokenize`.
#[derive(Debug, Clone, Args)]
pub(crate) struct TokenizeArgs {
    /// The base.
    #[command(flatten)]
    base: BaseArgs,
    /// The text; without it, the file or standard input is read.
    text: Option<String>,
    /// Read the text from a file.
    #[arg(short = 'f', long, conflicts_with = "text")]
    file: Option<PathBuf>,
    /// Read control tokens that the text spells.
    #[arg(long)]
    special: bool,
    /// Print only the token ids, as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(a: &TokenizeArgs) -> Result<ExitStatus> {
    let base = Base::open(&a.base.path()?)?;
    let text = match (&a.text, &a.file) {
        (Some(t), _) => t.clone(),
        (None, Some(path)) => conpet_formats::fs::read_text(path)?,
        (None, None) => {
            let mut text = String::new();
            let read = std::io::stdin().lock().read_to_string(&mut text);
            let failed = |e: std::io::Error| match e.kind() {
                ErrorKind::InvalidData => Error::new(Code::Text, "the text is not UTF-8").hint("convert it to UTF-8"),
                _ => Error::io("read", e),
            };
            read.map_err(|e| failed(e).in_file("standard input"))?;
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
        print(&json!(tokens).to_string())?;
        return Ok(ExitStatus::Success);
    }
    for (t, text) in tokens.iter().zip(texts) {
        print(&format!("{t:>7}  {text:?}"))?;
    }
    Ok(ExitStatus::Success)
}
