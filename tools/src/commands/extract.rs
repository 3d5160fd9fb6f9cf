//! `extract`: one section's payload, verified, into a new file at the path the user typed.

use crate::cli::ExtractArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::part;
use crate::table::number;
use crate::view::{Damage, View};
use conpet_formats::{Error, fs};
use serde::Serialize;

#[derive(Serialize)]
struct Extract {
    schema: &'static str,
    file: String,
    stage: u64,
    damage: Vec<Damage>,
    part: String,
    section: u32,
    kind: &'static str,
    bytes: u64,
    blake3: String,
    to: String,
}

pub(super) fn run(args: &ExtractArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let view = View::open(&args.file, args.stage, out)?;
    let index = part::find(view.manifest(), view.sections(), &args.part)?;
    let bytes = view.section(index)?;
    fs::create_new(&args.to, |w| w.write_all(bytes).map_err(|e| Error::io("write", e))).map_err(|e| {
        let taken = e.code() == conpet_formats::Code::Duplicate;
        let failure = Failure::from(e);
        if taken { Failure { status: ExitStatus::Usage, ..failure } } else { failure }
    })?;
    let record = &view.sections()[index as usize];
    let result = Extract {
        schema: "conpet.inspect.extract/1",
        file: args.file.display().to_string(),
        stage: view.generation(),
        damage: view.damage(),
        part: part::names(view.manifest(), view.sections()).swap_remove(index as usize),
        section: index,
        kind: record.kind.name(),
        bytes: record.len,
        blake3: record.hex(),
        to: args.to.display().to_string(),
    };
    if out.json() {
        out.object(&result)?;
    } else {
        out.field("wrote", &result.to);
        out.field("part", &format!("{}, a {} of stage {}", result.part, result.kind, result.stage));
        out.field("bytes", &number(result.bytes));
        out.field("blake3", &result.blake3);
    }
    Ok(view.status())
}
