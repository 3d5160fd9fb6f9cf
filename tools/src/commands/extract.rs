//! `extract` copies one section's payload, verified, to a new file.

use crate::cli::ExtractArgs;
use crate::exit::{self, ExitStatus, Failure};
use crate::output::Output;
use crate::part::{self, Part};
use crate::view::View;
use conpet_formats::{Error, fs};
use serde::Serialize;

#[derive(Serialize)]
struct Extract {
    schema: &'static str,
    #[serde(flatten)]
    part: Part,
    blake3: String,
    to: String,
}

pub(super) fn run(args: &ExtractArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let view = View::open(&args.file, args.stage, out)?;
    let index = part::find(view.manifest(), view.sections(), &args.part)?;
    let bytes = view.section(index)?;
    fs::create_new(&args.to, |w| w.write_all(bytes).map_err(|e| Error::io("write", e))).map_err(exit::creating)?;
    let result = Extract {
        schema: "conpet.inspect.extract/1",
        part: Part::new(&args.file, &view, index),
        blake3: view.sections()[index as usize].hex(),
        to: args.to.display().to_string(),
    };
    if out.json() {
        out.object(&result)?;
    } else {
        out.field("wrote", &result.to);
        result.part.fields(out);
        out.field("blake3", &result.blake3);
    }
    Ok(view.status())
}
