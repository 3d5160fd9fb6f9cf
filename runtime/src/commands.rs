//! What the commands of `conpet-run` do. Data goes to standard output, all else to standard error.

mod bench;
mod chat;
mod classify;
mod generate;
mod perplexity;
mod route;
mod tokenize;

use crate::cli::{Cli, Command, InputArgs};
use crate::error::{Code, Error, Result};
use crate::skills::Skills;
use std::io::{BufRead, Write};
use std::sync::atomic::AtomicBool;

/// Runs a command; `stop` ends the answer under way.
///
/// # Errors
/// Names the file, the place, the value and the remedy.
pub fn run(cli: Cli, stop: &AtomicBool) -> Result<()> {
    match cli.command {
        Command::Classify(a) => classify::run(&a, stop),
        Command::Generate(a) => generate::run(&a, stop),
        Command::Chat(a) => chat::run(&a, stop),
        Command::Route(a) => route::run(&a, stop),
        Command::Bench(a) => bench::run(&a),
        Command::Perplexity(a) => perplexity::run(&a, stop),
        Command::Tokenize(a) => tokenize::run(&a),
    }
}

/// A line on standard error.
pub(crate) fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "warning: {text}");
}

/// A line on standard output. A reader that has gone away (`| head`) is no fault.
fn print(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| Error::io("print", e)),
    }
}

/// Calls `f` with each input: the arguments, else the lines of the file, else of standard input.
fn inputs(a: &InputArgs, mut f: impl FnMut(Vec<String>) -> Result<()>) -> Result<()> {
    if !a.texts.is_empty() {
        return f(a.texts.clone());
    }
    let name = a.file.as_ref().map_or_else(|| "standard input".into(), |p| p.display().to_string());
    let reader: Box<dyn BufRead> = match &a.file {
        Some(p) => {
            let file = std::fs::File::open(p).map_err(|e| Error::io("open", e).in_file(p))?;
            Box::new(std::io::BufReader::new(file))
        }
        None => Box::new(std::io::stdin().lock()),
    };
    // A few lines at a time: enough to share weights, soon enough to see answers.
    let (mut pending, mut seen) = (Vec::new(), false);
    for (i, line) in reader.lines().enumerate() {
        let line = line.map_err(|e| bad_text(e).in_file(&name).in_section(format!("line {}", i + 1)))?;
        if line.trim().is_empty() {
            continue;
        }
        seen = true;
        pending.push(text_of(&line).map_err(|e| e.in_file(&name).in_section(format!("line {}", i + 1)))?);
        if pending.len() == 16 {
            f(std::mem::take(&mut pending))?;
        }
    }
    if !seen {
        return Err(Error::new(Code::Missing, "there is no text")
            .in_file(name)
            .hint("give texts as arguments, in a file with -f, or a line each on standard input"));
    }
    if pending.is_empty() { Ok(()) } else { f(pending) }
}

/// Why text could not be read.
fn bad_text(e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::InvalidData => Error::new(Code::Text, "the text is not UTF-8").hint("convert it to UTF-8"),
        _ => Error::io("read", e),
    }
}

/// The text of a line: itself, or the `text` or `prompt` of a JSON object.
fn text_of(line: &str) -> Result<String> {
    if !line.trim_start().starts_with('{') {
        return Ok(line.to_owned());
    }
    let v: serde_json::Value = serde_json::from_str(line).map_err(|e| {
        Error::new(Code::Value, format!("the line begins like JSON but is not: {e}"))
            .hint("write {\"text\": ..}, or plain text")
    })?;
    ["text", "prompt"].iter().find_map(|k| v.get(k)?.as_str()).map(str::to_owned).ok_or_else(|| {
        Error::new(Code::Missing, "the JSON object has neither text nor prompt").hint("write {\"text\": ..}")
    })
}

/// The bundle that a command cannot do without.
fn need(skills: Option<Skills>) -> Result<Skills> {
    skills.ok_or_else(|| {
        Error::new(Code::Missing, "a bundle is needed").hint("give one with --bundle; conpet-train makes them")
    })
}

/// The task that `--task` names, which takes a bundle.
fn task_of(skills: Option<&Skills>, task: Option<&String>) -> Result<Option<usize>> {
    match (skills, task) {
        (Some(s), t) => named(s, t),
        (None, None) => Ok(None),
        (None, Some(t)) => {
            Err(Error::new(Code::Missing, format!("--task {t} needs a bundle")).hint("give one with -b"))
        }
    }
}

/// A task by name.
fn named(skills: &Skills, task: Option<&String>) -> Result<Option<usize>> {
    task.map(|t| skills.task(t)).transpose()
}
