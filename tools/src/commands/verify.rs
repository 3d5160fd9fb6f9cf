//! `verify` checks that every byte of a bundle is what it should be, and that a base is the bundle's own.

use super::count;
use crate::cli::VerifyArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use crate::table::{Table, number};
use conpet_formats::bundle::{self, Bundle, Finding, Survey, Trust};
use conpet_formats::fingerprint::{CheckDepth, check_base};
use conpet_formats::gguf::Shards;
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Verify {
    schema: &'static str,
    file: String,
    full: bool,
    ok: bool,
    findings: Vec<Fault>,
    /// Stages whose commit is whole, and how many of their sections are.
    stages: Vec<Stage>,
    /// The trusted key that signed the current stage; `None` unless there is a trust file.
    signed_by: Option<String>,
    /// `None` unless a base was given.
    base: Option<Base>,
}

#[derive(Serialize)]
struct Fault {
    code: &'static str,
    text: String,
    damage: bool,
}

#[derive(Serialize)]
struct Stage {
    stage: u64,
    offset: u64,
    sections: usize,
    whole: usize,
    bytes: u64,
}

#[derive(Serialize)]
struct Base {
    file: String,
    matches: bool,
    every_byte: bool,
}

pub(super) fn run(args: &VerifyArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let mut findings = bundle::verify(&args.file, args.full)?;
    // The full walk meets again what the quick one has found.
    findings.dedup();
    let damage: Vec<&Finding> = findings.iter().filter(|f| f.damage).collect();
    let stages = Survey::open(&args.file).map(|s| stages(&s)).unwrap_or_default();
    // The first fault decides: a newer format or another kind of file is "usage", all else damage.
    let status = match damage.first() {
        None => ExitStatus::Success,
        Some(f) if ["E_VERSION", "E_REQUIRES", "E_UNSUPPORTED"].contains(&f.code) => ExitStatus::Usage,
        Some(f) if f.code == "E_MAGIC" && stages.is_empty() => ExitStatus::Usage,
        Some(_) => ExitStatus::Damaged,
    };
    let trust = Trust::find(args.trust.trust.as_deref())?;
    let signer = match &trust {
        Some(trust) if status == ExitStatus::Success => Some(signer(&args.file, trust)),
        _ => None,
    };
    let base = args.hub.or(args.base.as_deref())?;
    let mismatch = match &base {
        Some(base) if status == ExitStatus::Success => check(&args.file, base, args.full).err(),
        _ => None,
    };
    let base = base.as_ref().filter(|_| status == ExitStatus::Success).map(|b| Base {
        file: b.display().to_string(),
        matches: mismatch.is_none(),
        every_byte: args.full,
    });
    let faults = damage.len();
    let result = Verify {
        schema: "conpet.inspect.verify/1",
        file: args.file.display().to_string(),
        full: args.full,
        ok: status == ExitStatus::Success && mismatch.is_none() && !matches!(signer, Some(Err(_))),
        findings: findings
            .into_iter()
            .map(|f| Fault { code: f.code, text: without_hint(f.text), damage: f.damage })
            .collect(),
        stages,
        signed_by: signer.as_ref().and_then(|s| s.as_ref().ok().cloned()),
        base,
    };
    if out.json() {
        out.object(&result)?;
    } else {
        print(&result, out);
    }
    if let Some(Err(unsigned)) = signer {
        return Err(unsigned);
    }
    if let Some(mismatch) = mismatch {
        return Err(mismatch);
    }
    if status == ExitStatus::Success {
        return Ok(status);
    }
    Err(Failure {
        status,
        message: format!("{}: {}", result.file, count(faults, "fault")),
        hint: remedy(&result, status).into(),
    })
}

fn remedy(v: &Verify, status: ExitStatus) -> &'static str {
    if status == ExitStatus::Usage {
        "use a newer conpet, or another file"
    } else if v.findings.iter().filter(|f| f.damage).all(|f| f.code == "W_SUPERBLOCK") {
        "nothing is lost; the next append or rollback repairs it"
    } else if v.stages.is_empty() {
        "restore the file from a copy"
    } else {
        "restore the file from a copy; `conpet-inspect extract --stage N` copies sections that are still whole"
    }
}

/// The key that signed the current stage.
fn signer(file: &Path, trust: &Trust) -> Result<String, Failure> {
    Ok(trust.check(&Bundle::open(file)?)?.to_owned())
}

fn check(bundle: &Path, base: &Path, full: bool) -> Result<(), Failure> {
    let bundle = Bundle::open(bundle)?;
    let files = Shards::open(base)?;
    let depth = if full { CheckDepth::Full } else { CheckDepth::Quick };
    check_base(&bundle.manifest().base, &files.gguf()?, depth).map_err(|e| e.in_file(base))?;
    Ok(())
}

fn stages(survey: &Survey) -> Vec<Stage> {
    let stage = |s: &bundle::FoundStage| Stage {
        stage: s.stage,
        offset: s.offset,
        sections: s.sections.len(),
        whole: (0..s.sections.len()).filter(|i| survey.section(s, *i as u32).is_ok()).count(),
        bytes: s.sections.iter().map(|r| r.len).sum(),
    };
    survey.stages().iter().map(stage).collect()
}

/// Findings carry the hint on a second line; here the one hint at the end says it.
fn without_hint(text: String) -> String {
    match text.find("\nhint: ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

fn print(v: &Verify, out: &mut Output<'_>) {
    if v.findings.iter().all(|f| !f.damage) {
        let how = if v.full { "every byte is accounted for" } else { "every digest matches" };
        out.line(&format!("ok: {how}"));
    }
    for f in &v.findings {
        let kind = if f.damage { "fault" } else { "note" };
        // Most texts end with the code already.
        let code = if f.text.contains(f.code) { String::new() } else { format!(" [{}]", f.code) };
        out.field(kind, &format!("{}{code}", f.text));
    }
    if let Some(key) = &v.signed_by {
        out.field("signed", &format!("by {key}"));
    }
    if let Some(b) = &v.base {
        let how = if b.every_byte { "every byte" } else { "structure, tokenizer, length, sample" };
        out.field("base", &format!("{} ({how}): {}", if b.matches { "matches" } else { "does not match" }, b.file));
    }
    if !v.stages.is_empty() {
        let mut t = Table::new(&[">stage", ">commit at", ">sections", ">whole", ">bytes"]);
        for s in &v.stages {
            let (n, at, all) = (s.stage.to_string(), number(s.offset), s.sections.to_string());
            t.row([&n, &at, &all, &s.whole.to_string(), &number(s.bytes)]);
        }
        out.table("", &t);
    }
}
