//! `compact` replaces the bundle by its current stage alone.

use crate::cli::CompactArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::table::number;
use conpet_formats::bundle::{CompactOptions, compact};
use serde::Serialize;

#[derive(Serialize)]
struct Compact {
    schema: &'static str,
    file: String,
    before: u64,
    now: u64,
    bytes_before: u64,
    bytes_now: u64,
}

pub(super) fn run(args: &CompactArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let options = CompactOptions { drop_statistics: args.drop_statistics, drop_signature: args.drop_signature };
    let done = compact(&args.file, options)?;
    let result = Compact {
        schema: "conpet.inspect.compact/1",
        file: args.file.display().to_string(),
        before: done.before,
        now: done.now,
        bytes_before: done.bytes_before,
        bytes_now: done.bytes_now,
    };
    if out.json() {
        out.object(&result)?;
    } else if done.before == done.now {
        out.line(&format!("nothing to leave out: stage {} is alone in the file", done.now));
    } else {
        out.line(&format!("stage {} is now stage {}, alone in a new file of the same name", done.before, done.now));
        out.field("bytes", &format!("{} -> {}", number(done.bytes_before), number(done.bytes_now)));
    }
    Ok(ExitStatus::Success)
}
