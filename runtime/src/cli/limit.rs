//! Limits on the length of an answer, and the notice about one that was cut short.

use crate::text::{Finish, Generated};
use conpet_program::print;

/// Parses a count, for flags where llama.cpp's -1 means "all".
pub(crate) fn count_or_all(text: &str) -> Result<usize, String> {
    match text {
        "-1" => Ok(usize::MAX),
        _ => text.parse().map_err(|_| "use a number from 0, or -1 for no limit".into()),
    }
}

/// Says on standard error that an answer was cut short, and by what: the context, `-n` (`predict`), or
/// the task's own limit.
pub(crate) fn say_if_cut(g: &Generated, context: usize, predict: Option<usize>) {
    if g.finish != Finish::Length {
        return;
    }
    let n = g.tokens.len();
    let (by, hint) = if g.prompt_tokens + n >= context {
        (format!("by the context of {context}"), "shorten the prompt or raise --ctx-size")
    } else if predict.is_some() {
        ("by -n".into(), "raise -n; -1 is no limit")
    } else {
        ("by the limit of its task".into(), "raise it with -n; -1 is no limit")
    };
    print::say(&format!("notice: the answer was cut after {n} tokens, {by}\nhint: {hint}"));
}
