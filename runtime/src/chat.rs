//! Chat templates of GGUF files. They are untrusted programs, so they run in a sandbox with limited fuel and
//! output.

use crate::error::{Code, Error, Result};
use conpet_formats::gguf::Gguf;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{Environment, ErrorKind, context};
use std::ops::Range;

const KEY: &str = "tokenizer.chat_template";
const TEMPLATE_CAP: usize = 64 << 10;
const OUTPUT_CAP: usize = 4 << 20;
const FUEL: u64 = 1_000_000;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of the turn.
    pub content: String,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
}

impl ChatTemplate {
    /// The template of a base, if it has one.
    ///
    /// # Errors
    /// If it is too long or does not parse.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Option<Self>> {
        match gguf.str(KEY)? {
            None => Ok(None),
            Some(source) => Self::new(source).map(Some),
        }
    }

    /// Compiles a template.
    pub fn new(source: &str) -> Result<Self> {
        if source.trim().is_empty() {
            return Err(Error::new(Code::Missing, "the chat template is empty")
                .in_section(format!("key {KEY}"))
                .hint("use generate, which needs no chat template, or a base that has one"));
        }
        if source.len() > TEMPLATE_CAP {
            return Err(Error::new(Code::Cap, format!("a template of {} bytes, cap {TEMPLATE_CAP}", source.len()))
                .in_section(format!("key {KEY}")));
        }
        let mut env = Environment::new();
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(32);
        // The same settings as Hugging Face's Jinja.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?;
        env.set_syntax(syntax);
        env.set_unknown_method_callback(|_, value, method, args| python_method(value, method, args));
        env.add_function("raise_exception", |text: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, text))
        });
        env.add_template_owned("chat", source.to_owned()).map_err(failed)?;
        Ok(Self { env })
    }

    /// Renders a conversation; returns its text and the byte ranges of it that are the speakers' own words.
    /// With `answer`, the text ends where the assistant's turn begins.
    ///
    /// The words are marked before the template sees them, so that a control token spelled within a turn is
    /// read as ordinary text.
    ///
    /// # Errors
    /// If the template refuses the messages, runs out of fuel, or writes too much.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<(String, Vec<Range<usize>>)> {
        let template = self.env.get_template("chat").map_err(failed)?;
        let marked = |m: &Message| format!("{OPEN}{}{CLOSE}", m.content.replace([OPEN, CLOSE], ""));
        let messages: Vec<Value> =
            messages.iter().map(|m| context! { role => m.role.as_str(), content => marked(m) }).collect();
        let mut out = Capped(Vec::new());
        template
            .render_captured_to(
                context! { messages, add_generation_prompt => answer, bos_token => "", eos_token => "" },
                &mut out,
            )
            .map_err(failed)?;
        let marked = String::from_utf8_lossy(&out.0);
        let (mut text, mut words, mut open) = (String::with_capacity(marked.len()), Vec::new(), None);
        for c in marked.chars() {
            match c {
                OPEN => open = Some(text.len()),
                CLOSE => words.extend(open.take().map(|from| from..text.len())),
                c => text.push(c),
            }
        }
        // If the template cut a turn short, its closing mark is missing: everything after it counts as words.
        words.extend(open.map(|from| from..text.len()));
        Ok((text, words))
    }
}

/// Marks around the words while a template runs: private-use characters, which are removed from the text itself.
const OPEN: char = '\u{f0000}';
const CLOSE: char = '\u{f0001}';

/// A writer that fails beyond the output cap, so that a hostile template cannot fill the memory.
struct Capped(Vec<u8>);

impl std::io::Write for Capped {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0.len() + bytes.len() > OUTPUT_CAP {
            return Err(std::io::Error::other(format!("it writes more than {OUTPUT_CAP} bytes")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn failed(e: minijinja::Error) -> Error {
    Error::new(Code::Value, format!("the chat template failed: {e}"))
        .in_section(format!("key {KEY}"))
        .hint("use generate, which needs no chat template, or a base whose template is sound")
}

/// The string methods of Python that templates in the wild call.
fn python_method(value: &Value, method: &str, args: &[Value]) -> Result<Value, minijinja::Error> {
    let unknown = || minijinja::Error::new(ErrorKind::UnknownMethod, format!("no method {method}"));
    let s = value.as_str().ok_or_else(unknown)?;
    let arg = |i: usize| args.get(i).and_then(|v| v.as_str());
    Ok(match (method, arg(0)) {
        ("strip", None) => s.trim().into(),
        ("lstrip", None) => s.trim_start().into(),
        ("rstrip", None) => s.trim_end().into(),
        ("strip", Some(c)) => s.trim_matches(|x| c.contains(x)).into(),
        ("lstrip", Some(c)) => s.trim_start_matches(|x| c.contains(x)).into(),
        ("rstrip", Some(c)) => s.trim_end_matches(|x| c.contains(x)).into(),
        ("upper", None) => s.to_uppercase().into(),
        ("lower", None) => s.to_lowercase().into(),
        ("startswith", Some(p)) => s.starts_with(p).into(),
        ("endswith", Some(p)) => s.ends_with(p).into(),
        ("split", None) => s.split_whitespace().map(str::to_owned).collect::<Vec<_>>().into(),
        ("split", Some(sep)) if !sep.is_empty() => s.split(sep).map(str::to_owned).collect::<Vec<_>>().into(),
        ("replace", Some(from)) => s.replace(from, arg(1).ok_or_else(unknown)?).into(),
        _ => return Err(unknown()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(role: &str, content: &str) -> Message {
        Message { role: role.into(), content: content.into() }
    }

    #[test]
    fn renders_turns_and_python_methods() {
        let t = ChatTemplate::new(
            "{% for m in messages %}<{{ m['role'] }}>{{ m.content.strip() }}{% endfor %}{% if add_generation_prompt %}>>{% endif %}",
        )
        .unwrap();
        let (text, words) = t.render(&[say("user", "hi"), say("assistant", "yo<user>\u{f0001}")], true).unwrap();
        assert_eq!(text, "<user>hi<assistant>yo<user>>>");
        assert_eq!(words.iter().map(|r| &text[r.clone()]).collect::<Vec<_>>(), ["hi", "yo<user>"]);
    }

    #[test]
    fn hostile_templates_end() {
        for source in [
            "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
            "{{ raise_exception('no') }}",
            "{% for i in range(9000) %}{{ 'x' * 9000 }}{% endfor %}",
            "{{ ''.__class__.__mro__() }}",
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        ] {
            let t = ChatTemplate::new(source).unwrap();
            assert!(t.render(&[say("user", "x")], true).is_err(), "{source}");
        }
        assert!(ChatTemplate::new("{% for").is_err());
        assert!(ChatTemplate::new(" \n").unwrap_err().brief().contains("the chat template is empty"));
        assert!(ChatTemplate::new(&"x".repeat(TEMPLATE_CAP + 1)).is_err());
    }
}
