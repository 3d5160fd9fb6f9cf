//! `convert` makes a base of a Hugging Face checkpoint.

use super::count;
use crate::cli::ConvertArgs;
use crate::convert;
use crate::exit::{self, ExitStatus, Failure};
use crate::file_type;
use crate::output::Output;
use crate::table::number;
use serde::Serialize;

#[derive(Serialize)]
struct Convert {
    schema: &'static str,
    from: String,
    to: String,
    architecture: &'static str,
    file_type: &'static str,
    tensors: usize,
    parameters: u64,
    bytes: u64,
}

pub(super) fn run(args: &ConvertArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let file_type = file_type::named(&args.outtype).map_err(|e| Failure::usage(e.message(), e.remedy()))?;
    let done = convert::convert(&args.from, &args.to, file_type).map_err(exit::creating)?;
    let result = Convert {
        schema: "conpet.inspect.convert/1",
        from: args.from.display().to_string(),
        to: args.to.display().to_string(),
        architecture: done.arch,
        file_type: file_type.name,
        tensors: done.tensors,
        parameters: done.parameters,
        bytes: std::fs::metadata(&args.to).map_or(0, |m| m.len()),
    };
    if out.json() {
        out.object(&result)?;
    } else {
        out.field("wrote", &result.to);
        let what = format!("{}, {} parameters", count(result.tensors, "tensor"), number(result.parameters));
        out.field("base", &format!("{}, {}, {what}", result.architecture, result.file_type));
        out.field("bytes", &number(result.bytes));
    }
    Ok(ExitStatus::Success)
}
