//! `mark-good` ends the trial of the current stage, which has proven itself.

use crate::cli::MarkGoodArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use conpet_formats::bundle::update;
use serde::Serialize;

#[derive(Serialize)]
struct MarkGood {
    schema: &'static str,
    file: String,
    stage: u64,
    was_trial: bool,
    floor: u64,
}

pub(super) fn run(args: &MarkGoodArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let marked = update::mark_good(&args.file, args.floor)?;
    let result = MarkGood {
        schema: "conpet.inspect.mark-good/1",
        file: args.file.display().to_string(),
        stage: marked.stage,
        was_trial: marked.was_trial,
        floor: marked.floor,
    };
    if out.json() {
        out.object(&result)?;
    } else {
        let what = if marked.was_trial { "is good: its trial is over" } else { "was not on trial" };
        out.line(&format!("stage {} {what}", marked.stage));
        if args.floor {
            out.line(&format!("stages below {} are refused from now on", marked.floor));
        }
    }
    Ok(ExitStatus::Success)
}
