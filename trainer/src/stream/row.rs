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
    // Other keys, such as an id, are not read; one that belongs to another kind of row would be lost.
    let kinds = [["text", "label"].as_slice(), &["prompt", "completion"], &["messages"]];
    if kinds.iter().filter(|keys| keys.iter().any(|k| v.get(k).is_some())).count() > 1 {
        return Err("it is a row of two kinds at once".into());
    }
    if let Some(key) = ["tools", "functions"].iter().find(|k| v.get(k).is_some()) {
        return Err(format!("{key:?} is not understood: no tool is called"));
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
    let keys = list.iter().filter_map(Value::as_object).flat_map(|m| m.keys());
    if let Some(key) = keys.into_iter().find(|k| !["role", "content"].contains(&k.as_str())) {
        return Err(format!("a message has the key {key:?}, and only role and content are understood"));
    }
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

    /// Fails if a part of a row that changes what it means is passed over in silence.
    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let messages = |key: &str| {
            format!(r#"{{"messages":[{{"role":"user","content":"x"}},{{"role":"assistant","content":"y"{key}}}]}}"#)
        };
        assert!(parse(&messages("")).is_ok());
        assert!(parse(&messages(r#","tool_calls":[]"#)).unwrap_err().contains("tool_calls"));
        assert!(parse(&messages("").replace("{\"mess", "{\"tools\":[],\"mess")).unwrap_err().contains("tools"));
        assert!(parse(r#"{"text":"x","label":"a","id":7}"#).is_ok());
        assert!(parse(r#"{"text":"x","label":"a","prompt":"y"}"#).unwrap_err().contains("two kinds"));
    }

    #[test]
    fn a_byte_order_mark_line_ends_and_blank_lines_belong_to_no_row() {
        let row = "{\"text\":\"x\",\"label\":\"a\"}";
        let plain = read(format!("{row}\n{row}\n").as_bytes(), Path::new("f")).unwrap();
        let saved = read(format!("\u{feff}{row}\r\n\r\n{row}").as_bytes(), Path::new("f")).unwrap();
        assert_eq!((saved.len(), &saved), (2, &plain));
    }
}
