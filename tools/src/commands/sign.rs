//! `signing-text` and `sign`: the text that the stock minisign tool signs, and the stage with its signature.

use crate::cli::{SignArgs, SigningTextArgs};
use crate::exit::{self, ExitStatus, Failure};
use crate::output::Output;
use conpet_formats::bundle::{TRUST, Trust, sign, signing_text};
use conpet_formats::{Error, fs};
use serde::Serialize;

#[derive(Serialize)]
struct SigningText {
    schema: &'static str,
    file: String,
    text: String,
    /// The file it was written to, if it was written to one.
    to: Option<String>,
}

pub(super) fn text(args: &SigningTextArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let text = signing_text(&args.file)?;
    if let Some(to) = &args.to {
        fs::create_new(to, |w| w.write_all(text.as_bytes()).map_err(|e| Error::io("write", e)))
            .map_err(exit::creating)?;
    }
    let to = args.to.as_ref().map(|p| p.display().to_string());
    if out.json() {
        let file = args.file.display().to_string();
        out.object(&SigningText { schema: "conpet.inspect.signing-text/1", file, text, to })?;
    } else if let Some(to) = to {
        out.field("wrote", &to);
    } else {
        text.lines().for_each(|l| out.line(l));
    }
    Ok(ExitStatus::Success)
}

#[derive(Serialize)]
struct Sign {
    schema: &'static str,
    file: String,
    stage: u64,
    key: String,
}

pub(super) fn run(args: &SignArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let trust = Trust::find(args.trust.trust.as_deref())?.ok_or_else(|| {
        let message = "no trust file: a signature that nobody can check is not kept";
        Failure::usage(message, format!("give the public key's file with --trust, or make {TRUST}"))
    })?;
    let (stage, key) = sign(&args.file, &args.signature, &trust)?;
    let key = key.to_owned();
    let result = Sign { schema: "conpet.inspect.sign/1", file: args.file.display().to_string(), stage, key };
    if out.json() {
        out.object(&result)?;
    } else {
        out.line(&format!("stage {stage} is current now, signed by {}", result.key));
    }
    Ok(ExitStatus::Success)
}
