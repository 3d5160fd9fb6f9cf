//! One row of a task.

use conpet_formats::{Code, Error, Result};
use serde_json::Value;
use std::path::Path;

/// Longest line, in bytes.
const LINE_CAP: usize = 4 << 20;

/// An input and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The input, which the selector reads.
    pub text: String,
    /// The answer.
    pub goal: Goal,
    /// The whole conversation before the answer, as (role, content); empty if the row is not a conversation.
    pub chat: Vec<(String, String)>,
}

/// The answer that a row should get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// A label.
    Label(String),
    /// A text.
    Completion(String),
}

impl Row {
    /// The label, if it has one.
    pub fn label(&self) -> Option<&str> {
        match &self.goal {
            Goal::Label(l) => Some(l),
            Goal::Completion(_) => None,
        }
    }
}

/// Reads JSON lines; blank lines are skipped.
pub(super) fn read(bytes: &[u8], file: &Path) -> Result<Vec<Row>> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        Error::new(Code::Text, "the file is not UTF-8")
            .in_file(file)
            .at(e.valid_up_to() as u64)
            .hint("save it as UTF-8")
    })?;
    if text.starts_with('\u{feff}') {
        return Err(Error::new(Code::Text, "the file begins with a byte-order mark")
            .in_file(file)
            .at(0)
            .hint("save it without one"));
    }
    let mut out = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
        let bad = |what: String| {
            Error::new(Code::Value, format!("line {}: {what}", i + 1))
                .in_file(file)
                .hint("a row is {\"text\": .., \"label\": ..} or {\"prompt\": .., \"completion\": ..} or {\"messages\": [..]}")
        };
        if line.len() > LINE_CAP {
            return Err(bad(format!("{} bytes, cap {LINE_CAP}", line.len())));
        }
        let v: Value = serde_json::from_str(line).map_err(|e| bad(format!("not JSON: {e}")))?;
        let get = |key: &str| v.get(key).and_then(Value::as_str).map(str::to_owned);
        let row = match (get("text"), get("label"), get("prompt"), get("completion")) {
            (Some(text), Some(label), ..) => Row { text, goal: Goal::Label(label), chat: Vec::new() },
            (_, _, Some(text), Some(completion)) => Row { text, goal: Goal::Completion(completion), chat: Vec::new() },
            _ => messages(&v).map_err(bad)?,
        };
        let empty = match &row.goal {
            Goal::Label(s) | Goal::Completion(s) => s.is_empty() || row.text.is_empty(),
        };
        if empty {
            return Err(bad("the text or its answer is empty".into()));
        }
        out.push(row);
    }
    Ok(out)
}

/// Reads a conversation: the last message must be the assistant's; those before are the prompt, which the
/// base's chat template renders.
fn messages(v: &Value) -> Result<Row, String> {
    let list =
        v.get("messages").and_then(Value::as_array).ok_or("it has neither text and label nor prompt and completion")?;
    let turn = |m: &Value| -> Option<(String, String)> {
        Some((m.get("role")?.as_str()?.to_owned(), m.get("content")?.as_str()?.to_owned()))
    };
    let turns: Vec<_> = list.iter().map(turn).collect::<Option<_>>().ok_or("a message needs role and content")?;
    match turns.split_last() {
        Some(((role, answer), before)) if role == "assistant" && !before.is_empty() => {
            // As in serving, the last user turn is what the selector reads.
            let text = before.iter().rev().find(|(r, _)| r == "user").ok_or("no message is the user's")?.1.clone();
            Ok(Row { text, goal: Goal::Completion(answer.clone()), chat: before.to_vec() })
        }
        _ => Err("the last message must be the assistant's, after at least one other".into()),
    }
}
