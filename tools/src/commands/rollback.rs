//! `rollback` makes an older stage the current one.

use crate::cli::RollbackArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::view;
use conpet_formats::bundle::{self, Bundle};
use serde::Serialize;

#[derive(Serialize)]
struct Rollback {
    schema: &'static str,
    file: String,
    before: u64,
    now: u64,
    /// The commit to keep in mind for coming back.
    left: String,
}

pub(super) fn run(args: &RollbackArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let before = Bundle::open(&args.file)?;
    if args.stage != before.stage() {
        // Asked first, so that a wrong number is told apart from damage.
        view::older(&before, args.stage)?;
        bundle::rollback(&args.file, args.stage)?;
    }
    let result = Rollback {
        schema: "conpet.inspect.rollback/1",
        file: args.file.display().to_string(),
        before: before.stage(),
        now: args.stage,
        left: before.digest(),
    };
    if out.json() {
        out.object(&result)?;
    } else if result.before == result.now {
        out.line(&format!("stage {} was already current; nothing changed", result.now));
    } else {
        out.line(&format!(
            "stage {} is current now, it was {}; nothing was erased, and its number is not used again",
            result.now, result.before
        ));
    }
    Ok(ExitStatus::Success)
}
