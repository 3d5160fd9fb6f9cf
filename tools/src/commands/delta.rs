//! `delta` writes what a bundle has beyond an earlier state of it, as a file to send.

use crate::cli::DeltaArgs;
use crate::exit::{self, ExitStatus, Failure};
use crate::output::Output;
use crate::table::number;
use conpet_formats::bundle::update::write_delta;
use serde::Serialize;

#[derive(Serialize)]
struct Delta {
    schema: &'static str,
    from: u64,
    to: u64,
    commit: String,
    bytes: u64,
    file: String,
}

pub(super) fn run(args: &DeltaArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let delta = write_delta(&args.old, &args.new, &args.to).map_err(exit::creating)?;
    let result = Delta {
        schema: "conpet.inspect.delta/1",
        from: delta.from_stage(),
        to: delta.to_stage(),
        commit: delta.digest(),
        bytes: delta.tail().len() as u64,
        file: args.to.display().to_string(),
    };
    if out.json() {
        out.object(&result)?;
    } else {
        out.field("wrote", &result.file);
        out.field("stages", &format!("{} -> {}, commit {}", result.from, result.to, super::short(&result.commit)));
        out.field("bytes", &format!("{} to append", number(result.bytes)));
    }
    Ok(ExitStatus::Success)
}
