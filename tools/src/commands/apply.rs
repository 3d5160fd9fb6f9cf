//! `apply` takes an update, whole or not at all.

use crate::cli::ApplyArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::table::number;
use conpet_formats::bundle::Trust;
use conpet_formats::bundle::update::{self, ApplyOptions, Delta, State, TRIES};
use serde::Serialize;

#[derive(Serialize)]
struct Apply {
    schema: &'static str,
    file: String,
    before: u64,
    now: u64,
    commit: String,
    /// Bytes appended.
    bytes: u64,
    trial: bool,
    already: bool,
}

pub(super) fn run(args: &ApplyArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let delta = Delta::open(&args.delta)?;
    if let Some(e) = State::load(&args.file).1 {
        out.warn(&e.brief());
    }
    let trust = Trust::find(args.trust.trust.as_deref())?;
    let done = update::apply(&args.file, &delta, ApplyOptions { trial: args.trial, trust: trust.as_ref() })?;
    let result = Apply {
        schema: "conpet.inspect.apply/1",
        file: args.file.display().to_string(),
        before: done.before,
        now: done.now,
        commit: delta.digest(),
        bytes: done.written,
        trial: args.trial && !done.already,
        already: done.already,
    };
    if out.json() {
        out.object(&result)?;
    } else if done.already {
        out.line(&format!("stage {} was already current; nothing changed", done.now));
    } else {
        out.line(&format!("stage {} is current now, it was {}", done.now, done.before));
        out.field("appended", &format!("{} bytes", number(done.written)));
        if args.trial {
            let text = format!("stage {} comes back after {TRIES} starts, unless mark-good is run", done.before);
            out.field("trial", &text);
        }
    }
    Ok(ExitStatus::Success)
}
