//! `recover` saves whatever still verifies of a damaged bundle in a new file.

use crate::cli::RecoverArgs;
use crate::exit::{self, ExitStatus, Failure};
use crate::output::Output;
use conpet_formats::bundle::recover;
use serde::Serialize;

#[derive(Serialize)]
struct Recover {
    schema: &'static str,
    file: String,
    to: String,
    /// The stage that was found, and its number in the new file.
    found: u64,
    stage: u64,
    tasks: Vec<String>,
    lost: Vec<String>,
}

pub(super) fn run(args: &RecoverArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let done = recover(&args.file, &args.to, args.stage).map_err(exit::creating)?;
    let result = Recover {
        schema: "conpet.inspect.recover/1",
        file: args.file.display().to_string(),
        to: args.to.display().to_string(),
        found: done.found,
        stage: done.stage,
        tasks: done.tasks,
        lost: done.lost,
    };
    if out.json() {
        out.object(&result)?;
    } else {
        out.field("wrote", &result.to);
        out.field("stage", &format!("{}, from stage {}", result.stage, result.found));
        out.field("tasks", &result.tasks.join(", "));
        result.lost.iter().for_each(|l| out.field("lost", l));
    }
    // Written as asked, but a script should notice that it is less than it was.
    Ok(if result.lost.is_empty() { ExitStatus::Success } else { ExitStatus::Damaged })
}
