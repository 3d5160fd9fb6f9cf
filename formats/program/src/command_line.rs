//! The command line, and errors that name where a bad value came from: a flag or a variable.

use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command, CommandFactory, Parser};
use std::fmt::Display;

/// The command line as `C`. What clap refuses, and `--help` and `--version`, end the process here.
pub fn parse<C: Parser>() -> C {
    C::try_parse_from(spelled(std::env::args_os())).unwrap_or_else(|e| explain::<C>(e).exit())
}

/// Flags of llama.cpp that begin with one dash, and their long forms. To clap, `-hf` would be `-h -f`.
const SPELLINGS: [(&str, &str); 4] =
    [("-hf", "--hf-repo"), ("-hfr", "--hf-repo"), ("-hff", "--hf-file"), ("-hft", "--hf-token")];

/// A command line with the flags of llama.cpp that have one dash in their long forms.
pub fn spelled<T: Into<std::ffi::OsString>>(args: impl IntoIterator<Item = T>) -> Vec<std::ffi::OsString> {
    let mut flags = true;
    let spell = |arg: T| {
        let arg = arg.into();
        flags &= arg != "--";
        match SPELLINGS.iter().find(|(short, _)| flags && arg == *short) {
            Some((_, long)) => (*long).into(),
            None => arg,
        }
    };
    args.into_iter().map(spell).collect()
}

/// A command line as it may be shown to others: dots in place of a token.
pub fn without_token(args: impl IntoIterator<Item = String>) -> Vec<String> {
    const FLAG: &str = "--hf-token";
    let mut is_token = false;
    let show = |arg: String| match std::mem::replace(&mut is_token, arg == FLAG || arg == "-hft") {
        true => "...".to_owned(),
        false if arg.strip_prefix(FLAG).is_some_and(|rest| rest.starts_with('=')) => format!("{FLAG}=..."),
        false => arg,
    };
    args.into_iter().map(show).collect()
}

/// An error of clap that also names the environment variable, if the refused value came from one.
pub fn explain<C: CommandFactory>(mut e: clap::Error) -> clap::Error {
    let text = |kind| match e.get(kind) {
        Some(ContextValue::String(s)) => Some(s.clone()),
        _ => None,
    };
    if let (Some(flag), Some(value)) = (text(ContextKind::InvalidArg), text(ContextKind::InvalidValue)) {
        let mut command = C::command();
        command.build();
        let gave = |a: &Arg| {
            let variable = a.get_env().filter(|_| a.to_string() == flag)?.to_str()?.to_owned();
            (std::env::var(&variable).ok()? == value).then_some(variable)
        };
        if let Some(variable) = find(&command, &gave) {
            e.insert(ContextKind::InvalidArg, ContextValue::String(format!("{flag}, from {variable}")));
        }
    }
    e
}

/// What `f` finds first among the arguments of a command and those below it.
fn find<T>(c: &Command, f: &impl Fn(&Arg) -> Option<T>) -> Option<T> {
    c.get_arguments().find_map(f).or_else(|| c.get_subcommands().find_map(|below| find(below, f)))
}

/// A flag's value for messages, as it was given: `--ctx-size 9`, or `LLAMA_ARG_CTX_SIZE=9` if the variable
/// says the same.
pub fn given(flag: &str, variable: &str, value: impl Display) -> String {
    let value = value.to_string();
    match std::env::var(variable) {
        Ok(v) if v == value => format!("{variable}={value}"),
        _ => format!("{flag} {value}"),
    }
}
