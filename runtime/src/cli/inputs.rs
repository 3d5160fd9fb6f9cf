//! The inputs of a command. One that cannot be answered is reported and does not affect the answers to the others.

use crate::cli::common::Common;
use crate::error::{Code, Error, Result};
use clap::Args;
use conpet_program::queue::Queue;
use conpet_program::rows::{Place, Row};
use conpet_program::{ExitStatus, Stop, print};
use serde_json::json;
use std::collections::VecDeque;
use std::path::PathBuf;

/// Arguments of commands that answer texts.
#[derive(Debug, Clone, Args)]
pub struct InputArgs {
    /// Base, bundle and resources.
    #[command(flatten)]
    pub common: Common,
    /// The texts. Without any, each line of standard input is a text (or a JSON object with "text" or "prompt")
    /// and is answered as it comes.
    pub texts: Vec<String>,
    /// Read the texts from a file, one per line, plain or JSON.
    #[arg(short = 'f', long, conflicts_with = "texts")]
    pub file: Option<PathBuf>,
    /// Use this task instead of letting the selector choose.
    #[arg(long)]
    pub task: Option<String>,
    /// Print JSON lines.
    #[arg(long)]
    pub json: bool,
    /// Report an input that cannot be answered, continue with the next, and exit with 1 at the end; this is the
    /// default.
    #[arg(long, overrides_with = "fail_fast")]
    pub keep_going: bool,
    /// Stop at the first input that cannot be answered, after the answers to those before it.
    #[arg(long)]
    pub fail_fast: bool,
}

/// One input.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    /// The text.
    pub(crate) text: String,
    /// Number of the input, from 0; those that could not be read count too.
    pub(crate) number: u64,
    place: Place,
}

/// The inputs, in order.
pub(crate) struct Inputs {
    source: Source,
    /// A row that cannot be read; the rows before it are answered first.
    held: Option<Error>,
    tally: Tally,
}

enum Source {
    Given(VecDeque<Row>),
    Queue(Queue),
}

/// Counts the inputs, and those that got no answer.
pub(crate) struct Tally {
    /// Name of where the inputs come from.
    from: String,
    seen: u64,
    refused: u64,
    json: bool,
    fail_fast: bool,
}

impl Inputs {
    /// Opens the texts among the arguments, else the rows of the file, else those of standard input.
    ///
    /// # Errors
    /// If the file cannot be opened.
    pub(crate) fn open(a: &InputArgs) -> Result<Self> {
        let place = |(i, text): (usize, &String)| Row { text: text.clone(), place: Place::Argument(i + 1) };
        let source = match a.texts.is_empty() {
            false => Source::Given(a.texts.iter().enumerate().map(place).collect()),
            true => Source::Queue(Queue::open(a.file.as_deref())?),
        };
        let from = a.file.as_ref().map_or_else(|| "standard input".into(), |p| p.display().to_string());
        let tally = Tally { from, seen: 0, refused: 0, json: a.json, fail_fast: a.fail_fast };
        Ok(Self { source, held: None, tally })
    }

    /// Calls `answer` with all inputs, in groups of at most `most`. A group holds only what is already there,
    /// since another program may wait for an answer before it writes the next input. `answer` must settle each
    /// input with [`Tally::settle`].
    ///
    /// # Errors
    /// Errors that are not one input's own; with `--fail-fast`, the first input's error too.
    pub(crate) fn answer(
        mut self,
        stop: &Stop,
        most: usize,
        mut answer: impl FnMut(&[Input], &mut Tally) -> Result<()>,
    ) -> Result<ExitStatus> {
        while !stop.asked() {
            let batch = self.next(most)?;
            if batch.is_empty() {
                return self.tally.end();
            }
            let _work = stop.at_work();
            answer(&batch, &mut self.tally)?;
        }
        Ok(ExitStatus::Stopped)
    }

    /// Waits for an input and takes those that are already there after it; empty at the end.
    fn next(&mut self, most: usize) -> Result<Vec<Input>> {
        let mut batch: Vec<Input> = Vec::new();
        while batch.len() < most {
            if let Some(e) = self.held.take() {
                self.tally.seen += 1;
                self.tally.refuse(e)?;
            }
            let row = match &mut self.source {
                Source::Given(rows) => rows.pop_front().map(Ok),
                Source::Queue(q) => if batch.is_empty() { q.wait() } else { q.ready() }.map(|r| r.and_then(Row::input)),
            };
            match row {
                None => break,
                Some(Ok(Row { text, place })) => {
                    batch.push(Input { text, number: self.tally.seen, place });
                    self.tally.seen += 1;
                }
                Some(Err(e)) => {
                    self.held = Some(e);
                    if !batch.is_empty() {
                        break;
                    }
                }
            }
        }
        Ok(batch)
    }
}

impl Tally {
    /// Records whether an input was answered. One that cannot be answered is reported with its place.
    ///
    /// # Errors
    /// If the error is not the input's own, or with `--fail-fast`.
    pub(crate) fn settle(&mut self, input: &Input, result: Result<()>) -> Result<()> {
        match result {
            // An error that names a file is about that file (the base or the bundle), not about the input.
            Err(e) if e.file().is_none() && matches!(e.code(), Code::Cap | Code::Value | Code::Text) => {
                self.refuse(input.place.blame(e))
            }
            other => other,
        }
    }

    /// Reports an input that cannot be answered.
    fn refuse(&mut self, e: Error) -> Result<()> {
        if self.fail_fast || e.code().exit_code() == 4 {
            return Err(e);
        }
        self.refused += 1;
        print::complain(&e);
        // JSON output has one line for each input, answered or not.
        if self.json { print::print(&json!({ "error": e.brief(), "hint": e.remedy() }).to_string()) } else { Ok(()) }
    }

    fn end(&self) -> Result<ExitStatus> {
        match (self.seen, self.refused) {
            (0, _) => Err(Error::new(Code::Missing, "there is no text")
                .in_file(&self.from)
                .hint("give texts as arguments, in a file with -f, or a line each on standard input")),
            (_, 0) => Ok(ExitStatus::Success),
            (seen, refused) => {
                print::say(&format!("{refused} of {seen} inputs got no answer"));
                Ok(ExitStatus::Damaged)
            }
        }
    }
}
