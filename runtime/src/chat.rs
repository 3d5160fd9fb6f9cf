//! Chat templates of GGUF files: a conversation as the text a model was trained on.
//!
//! A template is an untrusted program in Jinja. It runs with limited fuel and output, and gets what transformers gives
//! it: the same variables, functions, filters, tests, methods and operators, with Python's results. What transformers
//! has and this does not is refused by name. Known to differ: a loop over `none` is one over nothing, where Python
//! fails; and the library folds operators of two literals itself, so that `1 in 'a'` is false, where Python fails.
//!
//! # Control tokens in the speakers' words
//!
//! A control token that a speaker spells is text; one that the template writes is a control token. So it must be known
//! of every byte of the result where it comes from, and the template must still see exactly the words, which it may
//! trim, split or compare.
//!
//! A conversation is rendered twice. The first rendering has the words as they are; its result is the text. In the
//! second every character of the words stands as a mark, a private-use character of its own (`words`). Marks are
//! copied as characters are, and everything here that looks at characters looks at what a mark stands for, so the
//! second rendering takes the same ways through the template. A character of the text was said where the second result
//! has a mark.
//!
//! This cannot be wrong in silence. The text is the plain rendering whatever becomes of the marks. A character that is
//! copied from the words is a mark in the second result, because the second template never sees the character itself;
//! what it writes by itself after a look at the words (a date, a length, one of its own sentences) is the template's.
//! And the second result, each mark read as its character, must be equal to the text, or the conversation is refused.

mod arguments;
mod clock;
mod environment;
mod filters;
mod json;
mod letters;
mod methods;
mod operators;
mod program;
mod python;
mod words;

use crate::error::{Code, Error, Result};
use clock::Clock;
use conpet_formats::gguf::Gguf;
use environment::environment;
use minijinja::Value;
use program::Program;
use std::ops::Range;
use std::sync::Arc;
use words::{Letter, Marks};

const KEY: &str = "tokenizer.chat_template";
const REMEDY: &str =
    "use a base whose chat template is sound, or do without: conpet-run generate, prompt and completion rows";
const TEMPLATE_CAP: usize = 64 << 10;
const OUTPUT_CAP: usize = 4 << 20;
/// The same for a rendering with marks, which have four bytes each.
const MARKED_CAP: usize = 4 * OUTPUT_CAP;
/// Steps of a rendering.
const FUEL: u64 = 1_000_000;
/// Only what is used of it takes memory.
const STACK: usize = 256 << 20;

/// The special tokens that templates know by name, and the keys of their numbers.
const SPECIAL: &[(&str, &str)] = &[
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    // So spelled in the format.
    ("sep_token", "tokenizer.ggml.seperator_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    ("cls_token", "tokenizer.ggml.cls_token_id"),
    ("mask_token", "tokenizer.ggml.mask_token_id"),
];

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
    program: Program,
    /// Names and spellings of the special tokens.
    tokens: Vec<(String, String)>,
    clock: Clock,
}

impl ChatTemplate {
    /// The template of a base, if it has one, with the special tokens of its vocabulary. Of several templates it is
    /// the one without a name, or the one named `default`.
    ///
    /// # Errors
    /// If it is empty, too long or does not parse, or a special token is not in the vocabulary.
    pub fn from_gguf(gguf: &Gguf<'_>) -> Result<Option<Self>> {
        let source = match gguf.str(KEY)? {
            None => gguf.str(&format!("{KEY}.default"))?,
            source => source,
        };
        let Some(source) = source else { return Ok(None) };
        let mut tokens = Vec::new();
        for (name, key) in SPECIAL {
            if let Some(id) = gguf.u32(key)? {
                let vocabulary = gguf.array("tokenizer.ggml.tokens")?;
                let token = vocabulary.and_then(|v| v.strings().ok()?.nth(id as usize));
                let token = token.and_then(|t| std::str::from_utf8(t).ok());
                let token = token
                    .ok_or_else(|| Error::new(Code::Value, format!("{key} is {id}, and no token has this number")))?;
                tokens.push(((*name).to_owned(), token.to_owned()));
            }
        }
        Ok(Some(Self { tokens, ..Self::new(source)? }))
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// If it is empty, too long or does not parse.
    pub fn new(source: &str) -> Result<Self> {
        if source.trim().is_empty() {
            return Err(Error::new(Code::Missing, "the chat template is empty")
                .in_section(format!("key {KEY}"))
                .hint(REMEDY));
        }
        if source.len() > TEMPLATE_CAP {
            return Err(Error::new(Code::Cap, format!("a template of {} bytes, cap {TEMPLATE_CAP}", source.len()))
                .in_section(format!("key {KEY}")));
        }
        let program = Program::new(source).map_err(|e| failed(&e))?;
        Ok(Self { program, tokens: Vec::new(), clock: Clock::default() })
    }

    /// The template with these special tokens, by the names that templates know: `bos_token`, say.
    #[must_use]
    pub fn with_tokens(mut self, tokens: &[(&str, &str)]) -> Self {
        self.tokens = tokens.iter().map(|(name, token)| ((*name).to_owned(), (*token).to_owned())).collect();
        self
    }

    /// The template at a fixed time, in seconds since 1970 and in UTC: what it says of the date is then always the
    /// same.
    ///
    /// # Errors
    /// If there is no such time.
    pub fn at(mut self, seconds: i64) -> Result<Self> {
        let time = jiff::Timestamp::from_second(seconds).map_err(|e| Error::new(Code::Value, e.to_string()))?;
        self.clock = Clock::Fixed(time);
        Ok(self)
    }

    /// Renders a conversation; returns its text and the byte ranges of it that are the speakers' own words. With
    /// `answer`, the text ends where the assistant's turn begins.
    ///
    /// # Errors
    /// If a role is not a name, or the template refuses the messages, runs out of fuel, writes too much, or treats
    /// the words in a way that cannot be followed.
    pub fn render(&self, messages: &[Message], answer: bool) -> Result<(String, Vec<Range<usize>>)> {
        let named = |role: &str| role.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | ' '));
        if let Some(m) = messages.iter().find(|m| !named(&m.role)) {
            // It is not the speakers' word, so it could spell a control token.
            return Err(Error::new(Code::Value, format!("the role {:?} is not a name", m.role))
                .hint("use system, user or assistant"));
        }
        // On a stack of its own: a template can nest values so deeply that dropping them needs much of it.
        std::thread::scope(|scope| {
            let rendering = std::thread::Builder::new()
                .name("chat template".into())
                .stack_size(STACK)
                .spawn_scoped(scope, || self.rendered(messages, answer));
            let rendering = rendering.map_err(|e| Error::io("start a thread", e))?;
            rendering.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn rendered(&self, messages: &[Message], answer: bool) -> Result<(String, Vec<Range<usize>>)> {
        // One time for both.
        let now = &self.clock.now();
        let text = self.run(&Arc::new(Marks::none()), now, messages, answer, (FUEL, OUTPUT_CAP))?;
        let known = self.tokens.iter().map(|(_, t)| t.as_str()).chain(messages.iter().map(|m| m.role.as_str()));
        let marks = Arc::new(Marks::beside(known.chain([self.program.source()])));
        let marked = self.run(&marks, now, messages, answer, (4 * FUEL, MARKED_CAP))?;
        let letters = marks.read(&marked).map_err(|e| failed(&e))?;
        if !letters.iter().map(|(c, _)| *c).eq(text.chars()) {
            return Err(Error::new(
                Code::Value,
                "the chat template treats the words in a way that cannot be followed, so a control token within them \
                 could not be told from its own",
            )
            .in_section(format!("key {KEY}"))
            .hint(REMEDY));
        }
        Ok((text, said(&letters)))
    }

    /// Renders a conversation whose words are marked.
    fn run(
        &self,
        marks: &Arc<Marks>,
        now: &jiff::ZonedDateTime,
        messages: &[Message],
        answer: bool,
        (fuel, cap): (u64, usize),
    ) -> Result<String> {
        let message = |m: &Message| {
            let content = marks.say(&m.content)?;
            Ok(Value::from_pairs([("role", Value::from(m.role.as_str())), ("content", content.into())]))
        };
        let messages: std::result::Result<Vec<Value>, minijinja::Error> = messages.iter().map(message).collect();
        let tokens = self.tokens.iter().map(|(name, token)| (name.as_str(), Value::from(token.as_str())));
        let variables = [
            ("messages", messages.map_err(|e| failed(&e))?.into()),
            ("add_generation_prompt", answer.into()),
            ("tools", ().into()),
            ("documents", ().into()),
        ];
        let variables = Value::from_pairs(tokens.chain(variables));
        let text = self.program.run(&environment(marks, now, fuel), variables).map_err(|e| failed(&e))?;
        if text.len() > cap {
            return Err(Error::new(Code::Value, format!("the chat template writes more than {OUTPUT_CAP} bytes"))
                .in_section(format!("key {KEY}")));
        }
        Ok(text)
    }
}

/// The byte ranges of the letters that were said.
fn said(letters: &[Letter]) -> Vec<Range<usize>> {
    let (mut at, mut out) = (0, Vec::<Range<usize>>::new());
    for (c, said) in letters {
        let next = at + c.len_utf8();
        match out.last_mut() {
            Some(last) if *said && last.end == at => last.end = next,
            _ if *said => out.push(at..next),
            _ => {}
        }
        at = next;
    }
    out
}

fn failed(e: &minijinja::Error) -> Error {
    Error::new(Code::Value, format!("the chat template failed: {e}")).in_section(format!("key {KEY}")).hint(REMEDY)
}

#[cfg(test)]
mod tests;
