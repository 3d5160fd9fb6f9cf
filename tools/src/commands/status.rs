//! `status` says which stage a box would serve, and where it stands with its updates.

use super::short;
use crate::cli::FileArgs;
use crate::exit::{ExitStatus, Failure};
use crate::output::Output;
use conpet_formats::bundle::Bundle;
use conpet_formats::bundle::update::{State, Trial};
use serde::Serialize;

#[derive(Serialize)]
struct Status<'a> {
    schema: &'static str,
    file: String,
    stage: u64,
    commit: String,
    /// True if it carries a signature; `verify --trust` says whether a trusted key made it.
    signed: bool,
    /// `None` unless the current stage is on trial.
    trial: Option<&'a Trial>,
    /// Commits that were tried and given up.
    failed: &'a [String],
    floor: u64,
}

pub(super) fn run(args: &FileArgs, out: &mut Output<'_>) -> Result<ExitStatus, Failure> {
    let bundle = Bundle::open(&args.file)?;
    bundle.warnings().iter().for_each(|w| out.warn(&format!("{}: {w}", args.file.display())));
    let (state, damaged) = State::load(&args.file);
    damaged.iter().for_each(|e| out.warn(&e.brief()));
    let result = Status {
        schema: "conpet.inspect.status/1",
        file: args.file.display().to_string(),
        stage: bundle.stage(),
        commit: bundle.digest(),
        signed: bundle.signature().is_some(),
        trial: state.in_force(&bundle),
        failed: &state.bad,
        floor: state.floor,
    };
    let below = state.allows(bundle.stage()).map_err(|e| e.in_file(&args.file));
    if out.json() {
        out.object(&result)?;
    } else {
        out.field("bundle", &result.file);
        out.field("stage", &format!("{}, commit {}", result.stage, short(&result.commit)));
        if result.signed {
            out.field("signed", "yes; `conpet-inspect verify --trust FILE` says by whom");
        }
        if let Some(t) = result.trial {
            out.field("trial", &format!("{} starts left, then stage {} comes back", t.tries_left, t.good_stage));
        }
        for commit in result.failed {
            out.field("failed", &format!("commit {}", short(commit)));
        }
        if result.floor > 0 {
            out.field("floor", &format!("stages below {} are refused", result.floor));
        }
    }
    below?;
    Ok(if damaged.is_some() { ExitStatus::Damaged } else { ExitStatus::Success })
}
