//! One row of a task.

use conpet_formats::{Code, Error, Result};
use conpet_program::rows::{self, Rows};
use serde_json::Value;
use std::path::Path;

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

/// What a row may be.
const FORMS: &str =
    "a row is {\"text\": .., \"label\": ..} or {\"prompt\": .., \"completion\": ..} or {\"messages\": [..]}";

/// Reads JSON lines, as all programs read rows.
///
/// # Errors
/// Names the file and the line.
pub(super) fn read(bytes: &[u8], file: &Path) -> Result<Vec<Row>> {
    let rows = Rows::new(bytes, &file.display().to_string());
    let parse = |line: Result<rows::Row>| {
        let line = line?;
        parse(&line.text).map_err(|what| line.place.blame(Error::new(Code::Value, what).hint(FORMS)))
    };
    rows.map(parse).collect()
}

fn parse(line: &str) -> Result<Row, String> {
    let v: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
    let get = |key: &str| v.get(key).and_then(Value::as_str).map(str::to_owned);
    let pairs = [get("text").zip(get("label")), get("prompt").zip(get("completion"))];
    let conversation = v.get("messages").is_some();
    if pairs.iter().flatten().count() + usize::from(conversation) > 1 {
        return Err("it is a row of two kinds at once".into());
    }
    let row = match pairs {
        [Some((text, label)), _] => Row { text, goal: Goal::Label(label), chat: Vec::new() },
        [_, Some((text, completion))] => Row { text, goal: Goal::Completion(completion), chat: Vec::new() },
        _ => messages(&v)?,
    };
    match &row.goal {
        Goal::Label(s) | Goal::Completion(s) if s.is_empty() || row.text.is_empty() => {
            Err("the text or its answer is empty".into())
        }
        _ => Ok(row),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_order_mark_line_ends_and_blank_lines_belong_to_no_row() {
        let row = "{\"text\":\"x\",\"label\":\"a\"}";
        let plain = read(format!("{row}\n{row}\n").as_bytes(), Path::new("f")).unwrap();
        let saved = read(format!("\u{feff}{row}\r\n\r\n{row}").as_bytes(), Path::new("f")).unwrap();
        assert_eq!((saved.len(), &saved), (2, &plain));
    }
}
